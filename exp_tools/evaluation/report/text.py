"""A report as one screen of text."""

from collections.abc import Mapping
from typing import Any

from exp_tools.evaluation.metrics.catalogue import HEADLINE, in_tables
from exp_tools.evaluation.report.numbers import bracketed, number
from exp_tools.evaluation.report.original_labels import text_line
from exp_tools.evaluation.report.robustness import worst_line
from exp_tools.evaluation.report.set_scores import sets_line


def summary_text(report: Mapping[str, Any]) -> str:
    """Headline scores with their intervals, scores by class, melanoma, and remarks.

    Parameters
    ----------
    report : as `build.score_set` gives it
    """
    lines = [f"{report['images']:,} images of {report['lesions']:,} lesions", ""]
    lines.append(f"{'':<20}{'score':>8}   95 % interval by lesion")
    for name, words in in_tables().items():
        doubt = " † holds the truth less often" if HEADLINE[name].holds_from > report["lesions"] else ""
        lines.append(
            f"{words:<20}{number(report['metrics'][name]):>8}   {_bracketed(report['intervals'][name])}{doubt}"
        )
    lesions = report["lesion_level"]
    lines.append(
        f"{'by lesion':<20}{number(lesions['metrics']['balanced_accuracy']):>8}   "
        f"{_bracketed(lesions['intervals']['balanced_accuracy'])}   balanced accuracy, images of a lesion averaged"
    )
    lines += ["", f"{'class':<16}{'images':>7}{'lesions':>8}   sensitivity              precision   AUC"]
    for code, row in report["per_class"].items():
        sensitivity = row["intervals"]["sensitivity"]
        few = "  few lesions" if sensitivity["small"] else ""
        lines.append(
            f"{code:<16}{row['support']:>7,}{row['lesions']:>8,}   {number(row['sensitivity'])} "
            f"{_bracketed(sensitivity):<18}   {number(row['precision'])}   {number(row['auc'])}{few}"
        )
    if report["melanoma"]:
        lines += ["", _melanoma(report["melanoma"])]
    if report.get("prediction_sets"):
        lines.append(sets_line(report["prediction_sets"]))
    if report["costs"]:
        cost = report["costs"]
        lines.append(
            f"mean cost of a decision {number(cost['mean_cost']['decided'])} {_bracketed(cost['intervals']['decided'])}"
        )
    lines += text_line(report)
    if report.get("robustness"):
        lines.append(worst_line(report["robustness"]))
    lines.append("Research and teaching only: not a medical device.")
    return "\n".join(lines)


def _melanoma(scores: Mapping[str, Any]) -> str:
    text = (
        f"melanoma against the rest ({scores['melanomas']:,} melanomas): AUC {number(scores['auc'])}, sensitivity "
        f"{number(scores['sensitivity_at_90_specificity'])} at 90 % specificity, specificity "
        f"{number(scores['specificity_at_90_sensitivity'])} at 90 % sensitivity"
    )
    if scores["threshold"] is None:
        return text
    rates = ", ".join(
        f"{name} {number(scores[name])} {_bracketed(scores['intervals'][name])}"
        for name in ("sensitivity", "specificity")
    )
    return f"{text}\nat the threshold of {scores['threshold']:g}: {rates}; {scores['missed_images']:,} melanomas missed"


def _bracketed(bounds: Mapping[str, Any]) -> str:
    return bracketed(bounds["low"], bounds["high"])
