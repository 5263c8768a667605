"""How far an export is from its model, on real images, and when it is refused."""

from collections.abc import Sized
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from exp_tools.errors import UserError
from exp_tools.evaluation.probabilities import Calibration
from exp_tools.models.model_file import ModelFacts
from exp_tools.serving.engines import Engine


class Parity(NamedTuple):
    """The difference of an export from its model, over all images and classes.

    images : on how many it was looked at
    logits, probabilities : the largest difference; no logits of a graph that gives probabilities
    changed : images that get another diagnosis
    """

    images: int
    logits: float | None
    probabilities: float
    changed: int


def check_request(out: Path, ending: str, images: Sized) -> None:
    """Raise UserError for a name that does not end so, or no image to compare on."""
    if not len(images):
        raise UserError("there is no image to compare the export with the model on")
    if out.suffix != ending:
        raise UserError(f"an export is called something{ending}, not {out.name}: the ending says how a model is read")


def compare_with(
    expected: NDArray[np.float32], engine: Engine, pixels: NDArray[np.uint8], metadata: NDArray[np.float32]
) -> Parity:
    """Compare an export with the model's logits [N, C], image by image and as a batch."""
    calibration = Calibration.from_dict(engine.facts.calibration)
    single = np.concatenate([engine.logits(pixels[[n]], metadata[[n]]) for n in range(len(pixels))])
    both = np.stack([single, engine.logits(pixels, metadata)])
    wanted, found = calibration.probabilities(expected), [calibration.probabilities(one) for one in both]
    apart = max(np.abs(one - wanted).max() for one in found)
    changed = np.any([calibration.decisions(one) != calibration.decisions(wanted) for one in found], axis=0)
    return Parity(len(pixels), float(np.abs(both - expected).max()), float(apart), int(changed.sum()))


def require_close(parity: Parity, tolerance: float, model: Path, out: Path) -> None:
    """Raise UserError where a probability differs by more than `tolerance`."""
    if parity.probabilities > tolerance:
        raise UserError(
            f"the export says something else than {model}: a probability differs by {parity.probabilities:.1e} "
            f"(at most {tolerance:.0e} is accepted); {out} was not written"
        )


def with_export(facts: ModelFacts, export: dict[str, Any]) -> ModelFacts:
    """The facts of an export: those of the model, and under `training.export` how it was made."""
    return replace(facts, training={**facts.training, "export": export})


def without_ood(facts: ModelFacts) -> ModelFacts:
    """The facts of an export without a detector of out-of-distribution images.

    A graph with its preprocessing gives no features, and 8 bits move features by more than the limit allows for.
    """
    return replace(facts, ood={})
