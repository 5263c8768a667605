"""Fit probabilities, the decision and thresholds on the validation split.

Reads   models/{network, ood}.safetensors, data/validation.csv
Writes  models/model.safetensors, metrics/{validation, calibration}.json
"""

import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from exp_tools.errors import require_file, run_main
from exp_tools.evaluation.calibrate import TEMPERATURES
from exp_tools.evaluation.fitting import choose_thresholds, fit_calibration
from exp_tools.evaluation.prediction_sets import always_held, fit_sets
from exp_tools.evaluation.probabilities import Calibration
from exp_tools.evaluation.validation import scores_of
from exp_tools.io import bare_cells, write_json
from exp_tools.models.model_file import copy_model, read_facts
from exp_tools.ood.fit import read_fit
from exp_tools.params import CalibrationParams, load_params
from exp_tools.project import CALIBRATION_REPORT, MODEL, NETWORK, OOD, VALIDATION, VALIDATION_METRICS


def main() -> None:
    params = load_params()
    facts = read_facts(NETWORK)
    table, logits, labels = validation_logits(facts.classes)
    shares, seen = (np.array(facts.training[name]) for name in ("class_shares", "seen_shares"))
    calibration, power = fit_calibration(params.calibration, facts.classes, shares, seen, logits, labels)
    probabilities = calibration.probabilities(logits)
    decided = calibration.decisions(probabilities)
    thresholds, promised = choose_thresholds(
        params.calibration, facts.classes, probabilities, labels, table["lesion_id"]
    )
    sets = fit_sets(
        params.calibration.sets, params.calibration.coverage, facts.classes, probabilities, labels, table["lesion_id"]
    )
    scores = scores_of(probabilities, labels, decided, facts.classes)
    foreign = read_fit(OOD)
    fitted = {"calibration": calibration.as_dict(), "thresholds": thresholds, "prediction_sets": sets}
    fitted["ood"] = foreign.facts(params.ood.quantile)
    copy_model(NETWORK, MODEL, replace(facts, **fitted), ood=foreign.tensors)

    write_json(VALIDATION_METRICS, {"best_epoch": facts.training["best_epoch"]} | scores)
    chosen = {"power": power, "thresholds": thresholds, "melanoma": promised, "prediction_sets": sets}
    write_json(CALIBRATION_REPORT, calibration.as_dict() | chosen | {"images": len(table)})
    warn(calibration, promised, params.calibration)
    warn_of_sets(sets)
    print(
        f"{MODEL}: temperature {calibration.temperature:.3f}, decisions {calibration.decide}; {VALIDATION_METRICS}: "
        f"balanced accuracy {scores['balanced_accuracy']:.3f} on the {len(table):,} "
        f"validation images that chose it, the best of {facts.training['epochs_run']} {facts.chosen_among}s: "
        "not for quoting"
    )


def validation_logits(classes: list[str]) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """The rows of validation.csv, their logits [N, C] and labels [N]."""
    require_file(VALIDATION, "train")
    texts = dict.fromkeys(("image_id", "lesion_id", "group_id", "dx"), str)
    table = bare_cells(pd.read_csv(VALIDATION, dtype=texts, keep_default_na=False))  # NA may be an id
    labels = table["dx"].map({code: place for place, code in enumerate(classes)}).to_numpy()
    return table, table[[f"logit_{code}" for code in classes]].to_numpy(np.float64), labels


def warn(calibration: Calibration, promised: dict[str, float] | None, params: CalibrationParams) -> None:
    """Warn of a fit that hit its bounds, and of a sensitivity that validation cannot promise."""
    if not TEMPERATURES[0] * 1.001 < calibration.temperature < TEMPERATURES[1] * 0.999:
        print(
            f"warning: the temperature {calibration.temperature:g} is at its bound: validation has too few mistakes, "
            "or too few images, to say how sure the network may be",
            file=sys.stderr,
        )
    if promised and promised["lesions"] < promised["needed"]:
        print(
            f"warning: validation has {promised['lesions']} melanomas; {promised['needed']} are needed for a "
            f"sensitivity of {params.melanoma_sensitivity:.4g}. The threshold finds all of them, which promises "
            f"{promised['sensitivity']:.1%} of new ones",
            file=sys.stderr,
        )


def warn_of_sets(sets: dict[str, Any]) -> None:
    """Warn of classes that are in every prediction set, since validation has too few lesions of them."""
    if always := always_held(sets):
        named = ", ".join(f"{code} ({count})" for code, count in always.items())
        print(
            f"warning: in every prediction set: {named}; validation has fewer lesions of these than the "
            f"{sets['needed']} that a coverage of {sets['coverage']:.4g} takes",
            file=sys.stderr,
        )


if __name__ == "__main__":
    run_main(main)
