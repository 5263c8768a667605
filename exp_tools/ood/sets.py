"""Judge the images of a whole set while a network predicts them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from exp_tools.models.model_file import read_ood
from exp_tools.ood.features import FeatureTap
from exp_tools.ood.judge import ForeignJudge

BATCH = 256


class SetJudge:
    """Collects the features of each forward pass of a network; see `judging`."""

    def __init__(self, judge: ForeignJudge | None, tap: FeatureTap | None) -> None:
        self._judge, self._tap = judge, tap
        self._parts: list[np.ndarray] = []

    def collect(self, *_: Any) -> None:
        """A hook behind the network's forward."""
        self._parts.append(_array(self._tap.take()))

    def columns(self, images: Path, rows: np.ndarray, views: int) -> dict[str, np.ndarray]:
        """`unlike_score` and `unlike_training` of the images that were predicted, by their first view.

        Parameters
        ----------
        images : images.npy
        rows : the rows of it that were predicted, in their order [N]
        views : how many views of each batch were predicted, one after the other

        Returns
        -------
        Columns [N] for a prediction table; none where the model file cannot tell
        """
        if self._judge is None or not len(rows):
            return {}
        # Without a pass of the whole network its head was given features that were computed before.
        features = np.concatenate(self._parts[::views]) if self._parts else _array(self._tap.take())
        packed = np.load(images, mmap_mode="r")
        found = []
        for start in range(0, len(rows), BATCH):
            some = slice(start, start + BATCH)
            found.append(self._judge.judge(packed[rows[some]], features[some]))
        return {
            "unlike_score": np.concatenate([one.scores for one in found]).round(6),
            "unlike_training": np.concatenate([one.flagged for one in found]),
        }


@contextmanager
def judging(network: nn.Module, ood: Mapping[str, Any], model: Path) -> Iterator[SetJudge]:
    """While this is open, all that the network predicts is collected for a judgement.

    Parameters
    ----------
    network : of the model file
    ood : `ModelFacts.ood` of it; {}: nothing is collected
    model : the model file, which has the tensors
    """
    if not ood:
        yield SetJudge(None, None)
        return
    tap = FeatureTap(network)
    judge = SetJudge(ForeignJudge(ood, read_ood(model)), tap)
    handle = network.register_forward_hook(judge.collect)
    try:
        yield judge
    finally:
        handle.remove()
        tap.remove()


def _array(features: Tensor) -> np.ndarray:
    return features.float().cpu().numpy()
