"""The results in a model card, section by section: each function gives lines of Markdown."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from exp_tools.evaluation.metrics.bootstrap import SMALL_GROUPS
from exp_tools.evaluation.metrics.catalogue import HEADLINE, OF_A_CLASS, in_tables, label_of
from exp_tools.evaluation.metrics.melanoma import HOLDS_FROM
from exp_tools.evaluation.metrics.subgroup_scores import PREFIX
from exp_tools.evaluation.report.numbers import interval, number
from exp_tools.models.model_file import ModelFacts
from exp_tools.taxonomy import DIAGNOSES, OTHER_DIAGNOSES

ATTRIBUTE_WORDS = {
    "sex": "sex",
    "age": "age in years",
    "localization": "body site",
    "source": "source",
    "dx_type": "how the diagnosis was confirmed",
}
DOUBTFUL = " †"
DOUBT = "† the interval holds the true value less often than 95 %: docs/evaluation.md#proof."
AT_RATES = {
    "auc": "AUC",
    "partial_auc": "partial AUC, specificity from 80 % (0.5: chance)",
    "isic_2024_partial_auc": "partial AUC, sensitivity from 80 % (0.02: chance, 0.2: perfect; ISIC 2024)",
    "sensitivity_at_90_specificity": "sensitivity at 90 % specificity",
    "sensitivity_at_95_specificity": "sensitivity at 95 % specificity",
    "specificity_at_90_sensitivity": "specificity at 90 % sensitivity",
    "specificity_at_95_sensitivity": "specificity at 95 % sensitivity",
}
AT_THRESHOLD = {
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "precision": "share of melanomas among the flagged (PPV)",
    "npv": "share of others among the unflagged (NPV)",
    "lr_positive": "likelihood ratio of a flag",
    "lr_negative": "likelihood ratio of no flag",
    "flagged": "share of images flagged",
}


def results(test: Mapping[str, Any]) -> list[str]:
    """Headline scores by image and by lesion, next to those of the colour baseline."""
    lesions = test["lesion_level"]
    baseline, views = test.get("baseline"), test.get("tta")
    head = ["score", "by image", "95 % interval", "by lesion", "95 % interval"]
    head += ["mean colours alone"] if baseline else []
    rows = []
    rare = min(row["lesions"] for row in test["per_class"].values() if row["lesions"]) < SMALL_GROUPS
    for name, words in in_tables().items():
        few = " *" if rare and not HEADLINE[name].over_all else ""
        few += DOUBTFUL if HEADLINE[name].holds_from > test["lesions"] else ""
        row = [words, number(test["metrics"][name]) + few, interval(test["intervals"][name])]
        row += [number(lesions["metrics"][name]) + few, interval(lesions["intervals"][name])]
        rows.append(row + ([number(baseline[name])] if baseline else []))
    lines = ["## Results on the test split", "", *table(head, rows), "", *_footnote(rows)]
    lines.append(
        "Intervals are bootstrapped over lesions. By lesion: probabilities of a lesion's images are averaged. Balanced "
        "accuracy is the mean sensitivity over classes."
    )
    if baseline:
        lines.append("Mean colours alone: logistic regression on a 3 x 3 grid of colours, same split.")
        lines += _above_baseline(test.get("above_baseline", {}))
    if test["metrics"].get("top_k"):
        shares = ", ".join(f"{number(share)} among the {k}" for k, share in sorted(test["metrics"]["top_k"].items()))
        lines.append(f"The right class is {shares} most probable.")
    if views:
        without = number(views["metrics_without"]["balanced_accuracy"])
        lines.append(
            f"Logits are the mean over {views['views']} views of each image, {views['views']} times the work; without, "
            f"the balanced accuracy is {without}."
        )
    return [*lines, ""]


def _above_baseline(differences: Mapping[str, Mapping[str, float]]) -> list[str]:
    lines = []
    for name, row in differences.items():
        better = "" if row["low"] > 0 else ": **not shown to be better than mean colours**"
        lines.append(f"Against them {label_of(name)} is {row['difference']:+.3f} ({interval(row)}){better}.")
    return lines


def classes(test: Mapping[str, Any]) -> list[str]:
    """Each class against the rest."""
    rows = []
    for code, row in test["per_class"].items():
        bounds = row["intervals"]
        rows.append(
            [
                f"`{code}` {_name(code)}".strip(),
                f"{row['support']:,}",
                f"{row['lesions']:,}",
                _scored(row["sensitivity"], bounds["sensitivity"]),
                _scored(row["specificity"], bounds["specificity"]),
                _scored(row["precision"], bounds["precision"]),
                _scored(row["auc"], bounds["auc"])
                + (DOUBTFUL if SMALL_GROUPS <= row["lesions"] < OF_A_CLASS["auc"].holds_from else ""),
            ]
        )
    head = ("class", "images", "lesions", "sensitivity", "specificity", "precision", "AUC")
    return ["### By class", "", *table(head, rows), "", *_footnote(rows)]


def confusion(test: Mapping[str, Any]) -> list[str]:
    """Images of each true class by the class that was decided for."""
    rows = [[f"`{true}`", *(f"{count:,}" for count in row.values())] for true, row in test["confusion"].items()]
    head = ["true, then decided", *(f"`{code}`" for code in test["confusion"])]
    return ["### Confusion matrix", "", *table(head, rows), ""]


def melanoma(facts: ModelFacts, test: Mapping[str, Any]) -> list[str]:
    """Melanoma against the rest, also at the model's threshold; empty without the class."""
    scores, lesions = test["melanoma"], test["lesion_level"]["melanoma"]
    if not scores:
        return []
    counted = [f"{one['melanomas']:,} of {one['images']:,}" for one in (scores, lesions)]
    lines = ["### Melanoma against everything else", "", f"{counted[0]} images, {counted[1]} lesions", ""]
    threshold = facts.thresholds.get("melanoma")
    names = dict(AT_RATES)
    if threshold is not None:
        names |= {name: f"at the model's threshold: {words}" for name, words in AT_THRESHOLD.items()}
    names["missed"] = f"missed melanomas ({scores['missed_images']:,} images, {lesions['missed_images']:,} lesions)"
    rows = []
    for name, words in names.items():
        doubt = DOUBTFUL if HOLDS_FROM.get(name, 0) > lesions["melanomas"] else ""
        few = " *" if scores["small"] else doubt
        cells = ((number(one[name]) + few, interval(one["intervals"][name])) for one in (scores, lesions))
        rows.append([words, *(cell for pair in cells for cell in pair)])
    head = ("score", "by image", "95 % interval", "by lesion", "95 % interval")
    lines += [*table(head, rows), "", *_footnote(rows)]
    if threshold is None:
        return [*lines, "The model has no threshold for melanoma: validation had none.", ""]
    return [
        *lines,
        f"The threshold flags a probability of melanoma of {threshold:g} or more. {_promise(facts.thresholds)} "
        "Missed: neither decided as melanoma, nor flagged, nor left to a human. Scores at 90 and 95 % were chosen on "
        "the test split itself and flatter a little.",
        "",
    ]


def _promise(thresholds: Mapping[str, float | None]) -> str:
    wanted, promised = thresholds["melanoma_sensitivity"], thresholds.get("melanoma_promised")
    if promised is None or promised >= wanted:
        return f"It was chosen on validation to find {wanted:.0%} of new melanomas, on average."
    return (
        f"It should find {wanted:.0%} of new melanomas, but validation has too few to promise that: it finds all of "
        f"those, which promises {promised:.1%}."
    )


def confidence(facts: ModelFacts, test: Mapping[str, Any]) -> list[str]:
    """Calibration, and the scores when the least certain images are not decided."""
    calibration, coverage = test["calibration"], test["coverage"]
    words = {
        "ece_width": "calibration error, bins of equal width",
        "ece_mass": "calibration error, bins of equally many images",
        "ece_classwise": "calibration error of each class's probability, mean over classes",
        "log_loss": "log-loss",
        "brier": "Brier score",
    }
    rows = [[text, *(number(calibration[part][name]) for part in ("before", "after"))] for name, text in words.items()]
    kept = ", ".join(f"{number(score)} on {float(share):.0%}" for share, score in coverage["accuracy_at"].items())
    lines = ["### Confidence", "", *table(("score", "before calibration", "after"), rows), ""]
    if calibration["after"]["log_loss"] > calibration["before"]["log_loss"]:
        lines.append("**Calibration made the log-loss worse on the test split**: validation is small, or another mix.")
    lines.append(
        f"Accuracy on the images it is surest of: {kept}; area under the risk-coverage curve {coverage['aurc']:.4f}."
    )
    if there := coverage["at_threshold"]:
        share = facts.thresholds.get("abstain_share")
        chosen = f", chosen to leave {share:.0%} of validation to a human" if share is not None else ""
        lines.append(
            f"Below a confidence of {there['threshold']:.3f}{chosen}, it abstains: {there['coverage']:.1%} of the test "
            f"images stay, with an accuracy of {number(there['accuracy'])}; on the rest it would reach "
            f"{number(there['accuracy_of_rest'])}."
        )
    return [*lines, "", *_class_calibration(calibration["by_class"])]


def _class_calibration(by_class: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Whether the probability of each class is its frequency."""
    rows = []
    for code, row in by_class.items():
        few = " *" if row["small"] else ""
        cells = [f"`{code}`", number(row["predicted"]), number(row["observed"]) + few]
        for name in ("ratio", "intercept", "slope"):
            reach = interval(row["intervals"][name])
            cells.append(number(row[name]) + (f" ({reach})" if reach != "–" else ""))
        rows.append(cells)
    head = ("class", "mean probability", "share", "observed / expected", "intercept (0)", "slope (1)")
    return [
        "### Calibration by class",
        "",
        *table(head, rows),
        "",
        *_footnote(rows),
        "Intercept above 0: probabilities are too low. Slope below 1: they are too extreme.",
        "",
    ]


def subgroups(test: Mapping[str, Any]) -> list[str]:
    """Scores of subgroups, and the gaps that are more than chance."""
    rows = []
    for row in test["subgroups"]:
        if row["attribute"] == "all":
            continue
        bounds, melanoma = row["intervals"], row["melanoma"]
        cells = [_attribute(row["attribute"]), str(row["value"]).replace("_", " ")]
        cells += [f"{row['images']:,}", f"{row['lesions']:,}", _scored(row["accuracy"], bounds["accuracy"])]
        cells.append(_scored(row["balanced_accuracy"], bounds["balanced_accuracy"]))
        if melanoma:
            there = "_at_threshold" if "sensitivity_at_threshold" in melanoma else ""
            which = [f"sensitivity{there}", f"specificity{there}"]
            cells += [f"{melanoma['images']:,}", *(_scored(melanoma[one], melanoma["intervals"][one]) for one in which)]
        rows.append(cells)
    if not rows:
        return []
    head = ["by", "group", "images", "lesions", "accuracy", "balanced accuracy"]
    if len(rows[0]) > len(head):
        at = " at the threshold" if test["subgroups"][0]["melanoma"].get("sensitivity_at_threshold") is not None else ""
        head += ["melanomas", f"melanoma sensitivity{at}", f"melanoma specificity{at}"]
    return ["### Subgroups", "", *table(head, rows), "", *_footnote(rows), *_gaps(test.get("gaps"))]


def _attribute(name: str) -> str:
    return ATTRIBUTE_WORDS.get(name, name.replace("_", " "))


STANDARDISED = (
    "Standardised: over the classes that each group has, in the proportions of the whole set. What differs within a "
    "class, such as nevi under observation and nevi that were excised, remains."
)


def _gaps(gaps: Sequence[Mapping[str, Any]] | None) -> list[str]:
    if gaps is None:
        return []
    clear = [gap for gap in gaps if gap["clear"]]
    if not clear:
        return ["No gap between groups of at least 10 lesions is more than chance (5 % for the whole table).", ""]
    lines = ["Gaps that are more than chance (5 % for the whole table; Tukey within an attribute, Holm over all):", ""]
    for gap in clear:
        metric = gap["metric"].replace(PREFIX, "melanoma ").replace("_", " ")
        metric += f" (over {', '.join(gap['over'])})" if gap.get("over") else ""
        lines.append(
            f"- {_attribute(gap['attribute'])}: {metric} is {gap['gap']:.3f} "
            f"({interval(gap['interval'])}) lower for {gap['worst']} than for {gap['best']}; {gap['shrunken']:.3f} "
            "after shrinkage, since the largest of many gaps is too large"
        )
    return [*lines, *(["", STANDARDISED] if any("standardised" in gap["metric"] for gap in clear) else []), ""]


def costs(test: Mapping[str, Any]) -> list[str]:
    """Mean cost of the two decision rules; empty where no costs were given."""
    costs = test.get("costs")
    if not costs:
        return []
    words = {
        "decided": "the decision of the model",
        "least_expected_cost": "the class of least expected cost",
        "saved": "saved by the second",
    }
    rows = [
        [text, number(costs["mean_cost"][name]), interval(costs["intervals"][name])] for name, text in words.items()
    ]
    return ["### Mean cost of a decision", "", *table(("decision", "cost", "95 % interval"), rows), ""]


def external(sets: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Headline scores on the external test sets; empty without any."""
    if not sets:
        return []
    rows = []
    for name, report in sets.items():
        row = [name, f"{report['images']:,}", f"{report['lesions']:,}"]
        row += [
            f"{number(report['metrics'][metric])} ({interval(report['intervals'][metric])})"
            for metric in ("balanced_accuracy", "accuracy", "macro_auc")
        ]
        left = sum((report.get("left_out") or {}).values())
        rows.append([*row, f"{left:,}"])
    head = ("set", "images", "lesions", "balanced accuracy", "accuracy", "macro AUC", "left out: unknown diagnosis")
    lines = ["## Results on other sets", "", *table(head, rows), ""]
    found = {name: report["melanoma"] for name, report in sets.items() if report.get("melanoma")}
    if not found:
        return lines
    rows = [
        [name, f"{row['melanomas']:,}"]
        + [
            number(row[score]) + (" *" if row["small"] else "") + _reach(row["intervals"][score])
            for score in ("auc", "sensitivity", "specificity")
        ]
        + [f"{row['missed_images']:,}"]
        for name, row in found.items()
    ]
    head = ("set", "melanomas", "AUC", "sensitivity at the threshold", "specificity", "missed")
    return [*lines, "### Melanoma on other sets", "", *table(head, rows), "", *_footnote(rows)]


def _reach(bounds: Mapping[str, Any]) -> str:
    return f" ({interval(bounds)})" if interval(bounds) != "–" else ""


def _name(code: str) -> str:
    diagnosis = DIAGNOSES.get(code) or OTHER_DIAGNOSES.get(code)
    return diagnosis.name if diagnosis else ""


def table(head: Sequence[Any], rows: Iterable[Sequence[Any]]) -> list[str]:
    """Lines of a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines]


def _footnote(rows: Iterable[Sequence[str]]) -> list[str]:
    cells = [str(cell) for row in rows for cell in row]
    lines = [f"\\* rests on fewer than {SMALL_GROUPS} lesions: a hint at most."] * any("*" in cell for cell in cells)
    lines += [DOUBT] * any(DOUBTFUL in cell for cell in cells)
    return [*lines, ""] if lines else []


def _scored(value: float | None, bounds: Mapping[str, Any]) -> str:
    if value is None or value != value:
        return "–"
    reach = interval(bounds)
    return number(value) + (f" ({reach})" if reach != "–" else "") + (" *" if bounds["small"] else "")
