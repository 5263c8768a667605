"""What a model card says of prediction sets."""

from collections.abc import Mapping
from typing import Any

from exp_tools.evaluation.prediction_sets import always_held
from exp_tools.evaluation.report.model_card_tables import table
from exp_tools.evaluation.report.numbers import interval, number
from exp_tools.models.model_file import ModelFacts

NAMES = {"lac": "LAC", "aps": "APS", "raps": "RAPS"}


def prediction_sets(facts: ModelFacts, report: Mapping[str, Any]) -> list[str]:
    """The section of the card, of the test split and the external sets.

    Parameters
    ----------
    facts : of the model file
    report : as `model_card.model_card` takes it
    """
    lines, sets, test = ["### Prediction sets", ""], facts.prediction_sets, report["test"].get("prediction_sets")
    if not sets or not test:
        return [*lines, "This model file holds none (`calibration.sets`).", ""]
    asked = f"{sets['coverage']:.4g}"
    lines += [
        "The set of a picture holds the diagnoses that it does not exclude. Asked: of the lesions of **each** "
        f"diagnosis, {asked} have theirs in the set of a picture of the lesion, chosen at random (class-conditional "
        f"{NAMES[sets['score']]}, thresholds from the validation lesions). That holds on average over validation sets, "
        "for lesions and pictures like those of validation, and for no others. A diagnosis outside the set is not "
        "ruled out for the person: the share that the coverage leaves has it all the same.",
        "",
        *_always(sets),
    ]
    rows = [["all", *_row({"lesions": report["test"]["lesions"]} | test)]]
    rows += [[f"`{code}`", *_row(row), number(row["held"])] for code, row in test["per_class"].items()]
    rows[0].append("")
    head = ("diagnosis", "lesions", "coverage", "mean size", "in the sets of other diagnoses")
    lines += [*table(head, rows), ""]
    if any(row["small"] for row in test["per_class"].values()):
        lines += ["\\* rests on fewer than 10 lesions: a hint at most.", ""]
    lines += _short(test, "On the test split")
    rows = [
        [row["size"], f"{row['images']:,}", number(row["coverage"]), number(row["accuracy"])] for row in test["by_size"]
    ]
    head = ("size of the set", "images", "hold the truth", "decision is right")
    lines += ["Large sets mark the difficult pictures, or should:", "", *table(head, rows), ""]
    return lines + _external(report["external"], sets["coverage"])


def _row(row: Mapping[str, Any]) -> list[str]:
    lesions, few = f"{row['lesions']:,}" if "lesions" in row else "", " *" if row.get("small") else ""
    cells = [
        "–" if number(row[name]) == "–" else f"{number(row[name])} ({interval(row['intervals'][name])}){few}"
        for name in ("coverage", "mean_size")
    ]
    return [lesions, *cells]


def _always(sets: Mapping[str, Any]) -> list[str]:
    found = always_held(sets)
    if not found:
        return []
    named = ", ".join(f"`{code}` ({count})" for code, count in found.items())
    return [
        f"**In every set**, since validation has fewer than the {sets['needed']} lesions that such a promise takes: "
        f"{named}. That such a diagnosis is in a set says nothing of the picture.",
        "",
    ]


def _short(found: Mapping[str, Any], where: str) -> list[str]:
    """A line on each coverage whose whole interval lies below what was asked; empty where none does."""
    rows = {"all lesions": found} if found["short"] else {}
    rows |= {f"`{code}`": row for code, row in found["per_class"].items() if row["short"]}
    if not rows:
        return []
    named = ", ".join(
        f"{name} {number(row['coverage'])} ({interval(row['intervals']['coverage'])})" for name, row in rows.items()
    )
    return [f"**{where} the promise does not hold** (asked {found['asked']:.4g}): {named}.", ""]


def _external(external: Mapping[str, Mapping[str, Any]], asked: float) -> list[str]:
    """Coverage on the external sets, where nothing is promised."""
    known = {name: one["prediction_sets"] for name, one in external.items() if one.get("prediction_sets")}
    if not known:
        return []
    rows = []
    for name, found in known.items():
        worst = {code: row["coverage"] for code, row in found["per_class"].items() if row["images"]}
        code = min(worst, key=worst.get)
        cells = _row(found)[1:]
        rows.append([name, f"{external[name]['lesions']:,}", *cells, f"`{code}` {number(worst[code])}"])
    head = ("other set", "lesions", "coverage", "mean size", "least covered")
    lines = [f"On other sets nothing is promised; found there (asked {asked:.4g}):", "", *table(head, rows), ""]
    for name, found in known.items():
        lines += _short(found, f"On {name}")
    return lines
