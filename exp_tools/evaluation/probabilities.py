"""From logits to calibrated probabilities, and from those to a decision.

The two are apart: a probability is the frequency of a class among images like those of validation; the decision also
weighs what a mistake costs. The class of least expected cost, the sum over true classes of probability times cost, is
the best decision (Elkan, The foundations of cost-sensitive learning, IJCAI 2001, equation 1).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from exp_tools.errors import UserError, did_you_mean
from exp_tools.evaluation.validation import check_logits, softmax

EQUAL = 1e-12
"""Costs closer than this (times the highest) are equal."""


@dataclass(frozen=True)
class Calibration:
    """How a model's logits become probabilities and decisions; `calibrate` fits it, the model file carries it.

    temperature, bias : p = softmax(logits / temperature + bias), bias float [C] with mean 0
    decide : the rule: frequent, balanced or costs, see `calibration.decide`
    costs : of the rule, [C][C], true class in rows; the decision is the class of least expected cost
    """

    temperature: float
    bias: list[float]
    decide: str
    costs: list[list[float]]

    @classmethod
    def none(cls, num_classes: int) -> "Calibration":
        """Probabilities are the softmax of the logits, the decision is the most probable class."""
        return cls(1.0, [0.0] * num_classes, "frequent", (1 - np.eye(num_classes)).tolist())

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Calibration":
        """The calibration of a model file. Raises UserError for a network that was not calibrated."""
        if not content:
            raise UserError(
                "this file is a trained network without calibration, as `train` writes it; use "
                "models/model.safetensors, which `dvc repro calibrate` makes of it"
            )
        return cls(**content)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def scaled(self, logits: ArrayLike) -> NDArray[np.float64]:
        """Logits [N, C] whose softmax are the probabilities. Raises UserError for NaN or infinite logits."""
        return check_logits(logits) / self.temperature + np.array(self.bias)

    def probabilities(self, logits: ArrayLike) -> NDArray[np.float64]:
        """Calibrated probabilities [N, C] of logits [N, C]."""
        return softmax(self.scaled(logits))

    def decisions(self, probabilities: NDArray[np.float64]) -> NDArray[np.int64]:
        """The class that is decided for, int [N], of probabilities [N, C]."""
        return least_cost_decisions(probabilities, np.array(self.costs))


def least_cost_decisions(probabilities: NDArray[np.float64], matrix: NDArray[np.float64]) -> NDArray[np.int64]:
    """The class [N] of least expected cost; of equals the most probable, of those the first."""
    # Added up class by class, so that equal sums are equal whatever the processor and the number of threads.
    expected = np.einsum("nt,tp->np", probabilities, matrix)
    best = expected <= expected.min(axis=1, keepdims=True) + EQUAL * matrix.max()
    return np.where(best, probabilities, -1).argmax(axis=1)


def cost_matrix(
    costs: Mapping[str, Mapping[str, float]], classes: Sequence[str], name: str = "evaluate.costs"
) -> NDArray[np.float64]:
    """Costs [C, C], true class in rows; from true class -> decided class -> cost; others are 1, right ones 0.

    Raises UserError for an unknown class, and a cost below 0 or that is no number."""
    matrix = 1 - np.eye(len(classes))
    _check_known(costs, classes, name)
    for true, row in costs.items():
        _check_known(row, classes, f"{name}.{true}")
        for predicted, cost in row.items():
            if not (math.isfinite(cost) and cost >= 0):
                raise UserError(f"{name}.{true}.{predicted} is {cost}; expected a number, 0 or more.")
            matrix[classes.index(true), classes.index(predicted)] = cost
    return matrix


def _check_known(names: Iterable[str], classes: Sequence[str], where: str) -> None:
    for name in names:
        if name not in classes:
            hint = did_you_mean(str(name), classes)
            raise UserError(f"{where} names {name!r}; the classes are {', '.join(classes)}{hint}")


def balanced_costs(shares: Sequence[float], power: float) -> NDArray[np.float64]:
    """Costs [C, C] by which a mistake on a class costs 1 / share^power: argmax of p / share^power decides."""
    weights = np.asarray(shares, dtype=np.float64) ** -power
    return (1 - np.eye(len(weights))) * (weights / weights.max())[:, None]
