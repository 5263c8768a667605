"""All that the section `calibration` asks for: probabilities, the decision, and thresholds, fitted on validation."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from exp_tools.evaluation.calibrate import choose_abstention, choose_power, choose_threshold, fit_probabilities
from exp_tools.evaluation.probabilities import Calibration, balanced_costs, cost_matrix
from exp_tools.params import CalibrationParams
from exp_tools.taxonomy import MELANOMA


def fit_calibration(
    params: CalibrationParams,
    classes: Sequence[str],
    shares: NDArray[np.float64],
    seen: NDArray[np.float64],
    logits: NDArray[np.float64],
    labels: NDArray[np.int64],
) -> tuple[Calibration, float | None]:
    """The calibration, and the power of the class shares where `decide` is balanced (else None).

    Parameters
    ----------
    params : the section `calibration`
    classes : the C classes
    shares, seen : share of each class in train, and in what training saw, float [C]
    logits, labels : of validation, float [N, C] and int [N]
    """
    temperature, bias = 1.0, np.zeros(len(shares))
    if params.fit != "none":
        start = np.log(shares / seen) if params.fit == "temperature_and_bias" else None
        temperature, bias = fit_probabilities(logits, labels, start)
    fitted = replace(
        Calibration.none(len(shares)),
        temperature=round(temperature, 6),
        bias=[round(value, 6) for value in bias.tolist()],
    )
    if params.decide == "frequent":
        return fitted, None
    power = None
    if params.decide == "costs":
        costs = cost_matrix(params.costs, classes, "calibration.costs")
    else:
        power = choose_power(fitted.probabilities(logits), labels, shares)
        costs = balanced_costs(shares, power)
    return replace(fitted, decide=params.decide, costs=costs.round(9).tolist()), power


def choose_thresholds(
    params: CalibrationParams,
    classes: Sequence[str],
    probabilities: NDArray[np.float64],
    labels: NDArray[np.int64],
    lesions: pd.Series,
) -> tuple[dict[str, float | None], dict[str, float] | None]:
    """The thresholds of the model file, and what the one of melanoma promises (None without the class).

    Parameters
    ----------
    params : the section `calibration`
    classes : the C classes
    probabilities, labels, lesions : calibrated float [N, C], int [N] and lesion ids [N], of validation
    """
    thresholds = {
        "melanoma": None,
        "melanoma_sensitivity": params.melanoma_sensitivity,
        "abstain": choose_abstention(probabilities, params.abstain_share),
        "abstain_share": params.abstain_share,
    }
    if MELANOMA not in classes:
        return thresholds, None
    place = list(classes).index(MELANOMA)
    wanted = params.melanoma_sensitivity
    threshold, lesions_of, needed = choose_threshold(probabilities[:, place], labels == place, lesions, wanted)
    promise = {"lesions": lesions_of, "needed": needed, "sensitivity": min(wanted, lesions_of / (lesions_of + 1))}
    return thresholds | {"melanoma": threshold, "melanoma_promised": promise["sensitivity"]}, promise
