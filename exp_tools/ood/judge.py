"""Whether a picture is unlike the training images: the network's features and cheap checks of the picture together."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from exp_tools.errors import UserError
from exp_tools.ood import checks
from exp_tools.ood.checks import REASONS, weighted_quantile
from exp_tools.ood.scores import Tensors, score

FARTHEST = 1e9
"""The score of features that have no distance: some are NaN, or too large to compute with."""


class Judgement(NamedTuple):
    """Of N pictures.

    scores : distance of the features from the training images, 1 at the limit: float [N]
    flagged : whether the score is above 1 or a check fails: bool [N]
    why : the reasons in words, "" where it is not flagged [N]
    """

    scores: NDArray[np.float64]
    flagged: NDArray[np.bool_]
    why: list[str]

    def rows(self) -> list[list[float | bool | str]]:
        """Score, flag and reasons of each picture, for JSON."""
        return [list(one) for one in zip(self.scores.tolist(), self.flagged.tolist(), self.why, strict=True)]


def fit_limit(
    scores: NDArray[np.float64], failed: NDArray[np.bool_], weights: NDArray[np.float64], quantile: float
) -> float:
    """The score up to which a picture counts as usual: so that `quantile` of the validation lesions are not flagged.

    What the checks flag counts as flagged already, so that score and checks together flag 1 - quantile.

    Parameters
    ----------
    scores, failed, weights : of the validation images [N]: score, whether a check failed, one over its lesion's images
    quantile : above 0 and below 1

    Returns
    -------
    float above 0; the largest finite score where the checks alone flag more
    """
    limit = weighted_quantile(np.where(failed, np.inf, scores), weights, quantile)
    return max(limit if np.isfinite(limit) else float(scores.max()), 1e-9)


def unlike_columns(rows: Sequence[Sequence[Any]]) -> dict[str, list[Any]]:
    """Columns of a table of pictures from `Judgement.rows`, "" in each where a row is empty: it cannot be told."""
    names = ("unlike_score", "unlike_training", "unlike_why")
    full = [row or ("", "", "") for row in rows]
    return {name: [row[place] for row in full] for place, name in enumerate(names)}


class ForeignJudge:
    """The judgement that a model file holds.

    Parameters
    ----------
    facts : `ModelFacts.ood`: method, limit, checks
    tensors : of the score, see `scores.fit_score`
    """

    def __init__(self, facts: Mapping[str, Any], tensors: Tensors) -> None:
        self.facts = facts
        self._tensors = {
            name: array.astype(np.float32) for name, array in tensors.items()
        }  # once, not for each picture

    def judge(self, pixels: Sequence[NDArray[np.uint8]], features: NDArray[np.float32]) -> Judgement:
        """Judge prepared squares, uint8 [N, S, S, 3], by their features, float [N, D]."""
        with np.errstate(over="ignore", invalid="ignore"):
            scores = score(self.facts["method"], self._tensors, features) / self.facts["limit"]
        scores = np.nan_to_num(scores, nan=FARTHEST, posinf=FARTHEST)
        names = checks.failed(checks.measure(pixels), self.facts["checks"])
        reasons = [one + (["features"] if far else []) for one, far in zip(names, scores > 1, strict=True)]
        flagged = np.array([bool(one) for one in reasons], dtype=bool)
        return Judgement(scores, flagged, ["; ".join(REASONS[name] for name in one) for one in reasons])


def packed(tensors: Tensors) -> str:
    """Tensors as text, for a file that holds no others: base64 of a safetensors file."""
    return base64.b64encode(save(tensors)).decode("ascii")


def unpacked(text: str, path: Path) -> Tensors:
    """The tensors in what `packed` wrote. Raises UserError where there are none."""
    try:
        return load(base64.b64decode(text))
    except (ValueError, SafetensorError) as error:
        raise UserError(
            f"{path}: it says how foreign pictures are told and lacks the numbers for it ({error}); export it again"
        ) from error
