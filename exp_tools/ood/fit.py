"""Fit scores and limits on train, apply them to validation, and hand both to the model file."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

from exp_tools.errors import UserError, require_file
from exp_tools.io import ProgressBar
from exp_tools.models.model_file import tensor_file
from exp_tools.ood.checks import failed, fit_limits, lesion_weights, measure
from exp_tools.ood.judge import fit_limit
from exp_tools.ood.scores import Tensors, fit_score, score

HEADER = "ood"
BATCH = 256


@dataclass(frozen=True)
class OodFit:
    """What train fits, and what it says of validation.

    method, tensors, limits : of the score and of the checks
    scores, failed, weights : of the validation images [V]: score before its limit, whether a check fails, one over the
        images of the lesion
    """

    method: str
    tensors: Tensors
    limits: dict[str, float]
    scores: NDArray[np.float64]
    failed: NDArray[np.bool_]
    weights: NDArray[np.float64]

    @property
    def bytes(self) -> int:
        """Of the tensors."""
        return sum(array.nbytes for array in self.tensors.values())

    def facts(self, quantile: float) -> dict[str, Any]:
        """`ModelFacts.ood` with the limit that leaves `quantile` of the validation lesions unflagged."""
        limit = fit_limit(self.scores, self.failed, self.weights, quantile)
        flagged = float(np.average(self.failed | (self.scores > limit), weights=self.weights))
        numbers = {"limit": limit, "quantile": quantile, "flagged": round(flagged, 6)}
        return {"method": self.method, "checks": self.limits} | numbers


def fit_ood(
    method: str,
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    lesions: NDArray[np.object_],
    train: NDArray[np.bool_],
    images: NDArray[np.uint8],
    rows: NDArray[np.int64],
) -> OodFit:
    """Fit on the training images, score the validation images.

    Parameters
    ----------
    method : one of scores.METHODS
    features, labels, lesions : of training and validation images [N, D], [N], [N]
    train : which of them are training images [N]; the others are validation
    images : all packed squares, uint8 [M, S, S, 3]
    rows : the place of each image among them [N]

    Raises
    ------
    UserError : no validation image, so no limit
    """
    if train.all():
        raise UserError("validation has no image, so no limit can be chosen: change split.fractions")
    measured = np.concatenate(
        [
            measure(images[rows[start : start + BATCH]])
            for start in ProgressBar(range(0, len(rows), BATCH), desc="checks", unit="batch", leave=False)
        ]
    )
    weights = lesion_weights(lesions[train])
    limits = fit_limits(measured[train], weights)
    tensors = fit_score(method, features[train], labels[train], weights)
    return OodFit(
        method,
        tensors,
        limits,
        score(method, tensors, features[~train]),
        np.array([bool(names) for names in failed(measured[~train], limits)]),
        lesion_weights(lesions[~train]),
    )


def write_fit(path: Path, fit: OodFit) -> None:
    """Write a fit; the same fit gives the same bytes."""
    arrays = {name: getattr(fit, name) for name in ("scores", "failed", "weights")}
    tensors = {f"fit.{name}": array for name, array in fit.tensors.items()}
    header = {HEADER: json.dumps({"method": fit.method, "limits": fit.limits}, sort_keys=True)}
    with tensor_file(path) as temporary:
        save_file({**tensors, **{f"validation.{name}": array for name, array in arrays.items()}}, temporary, header)


def read_fit(path: Path) -> OodFit:
    """Read what `write_fit` wrote. Raises UserError where there is no such file."""
    require_file(path, "ood")
    with safe_open(path, framework="numpy") as file:
        head = json.loads(file.metadata()[HEADER])
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    parts = {name: arrays[f"validation.{name}"] for name in ("scores", "failed", "weights")}
    tensors = {name.removeprefix("fit."): array for name, array in arrays.items() if name.startswith("fit.")}
    return OodFit(head["method"], tensors, head["limits"], **parts)
