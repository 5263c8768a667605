"""An evaluation as one HTML page that needs nothing but itself: scores, tables and figures, to read or to print."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from exp_tools.evaluation.metrics.catalogue import in_tables
from exp_tools.evaluation.report.numbers import interval, number
from exp_tools.models.model_file import ModelFacts
from exp_tools.taxonomy import is_drawn

WARNING = (
    "For research and teaching only. Not a medical device: no result of this model is a diagnosis, and none must guide "
    "treatment."
)
DRAWN = "The model has only ever seen synthetic images: no number here means anything for real skin."
FIGURES = {
    "confusion": "Confusion matrix",
    "roc": "ROC curves",
    "precision_recall": "Precision and recall",
    "reliability": "Reliability",
    "risk_coverage": "Abstention",
    "subgroups": "Subgroups",
    "robustness": "Disturbed images",
    "mistakes": "The most confident mistakes",
    "missed_melanomas": "Missed melanomas",
}
"""The figures that are shown, in this order, where they were drawn."""
CLASS_HEAD = ("class", "images", "lesions", "sensitivity", "95 %", "specificity", "precision", "AUC")
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #17242d; background: #fff; max-width: 62rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2rem; }
.warning { border: 1px solid #8a5a00; background: #fff6df; padding: .6rem .8rem; border-radius: .3rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid #d5dde3; padding: .25rem .8rem .25rem 0; text-align: left; vertical-align: top; }
figure { display: inline-block; width: 48%; min-width: 20rem; margin: .5rem 0; vertical-align: top; }
figure img { width: 100%; } figcaption { color: #3c4a54; }
@media print { body { margin: 0; max-width: none; font-size: 11px; } figure { break-inside: avoid; min-width: 0; } }
"""


def evaluation_page(
    title: str, facts: ModelFacts, report: Mapping[str, Any], figures: Path, *, checksum: str, notes: Sequence[str] = ()
) -> str:
    """Write the page.

    Parameters
    ----------
    title : names the set
    facts, checksum : of the model file; SHA-256 in hex digits
    report : of the set, see `build.score_set`
    figures : folder of PNG files by the names of FIGURES; what is not there is left out
    notes : what a reader must know of this evaluation

    Returns
    -------
    HTML with its style and pictures inside: it loads nothing
    """
    warnings = [WARNING, *([DRAWN] if is_drawn(facts.source) else []), *notes]
    model = [
        ("architecture", facts.architecture),
        ("trained on", facts.source),
        ("input", facts.input),
        ("classes", ", ".join(facts.classes)),
        ("SHA-256", checksum),
    ]
    parts = [
        f"<h1>{escape(title)}</h1>",
        *(f"<p class='warning'>{escape(text)}</p>" for text in warnings),
        "<h2>Model</h2>",
        _table(None, model),
        "<h2>Scores</h2>",
        f"<p>{report['images']:,} images of {report['lesions']:,} lesions. Intervals of 95 %, resampled by lesion.</p>",
        _table(("score", "value", "95 % interval"), _headline(report)),
        "<h2>Each class</h2>",
        _table(
            ("class", "images", "lesions", "sensitivity", "95 %", "specificity", "precision", "AUC"), _classes(report)
        ),
        "<h2>Subgroups</h2>",
        _table(("attribute", "value", "images", "lesions", "balanced accuracy", "95 %"), _subgroups(report)),
        "<h2>Figures</h2>",
        *(_figure(figures / f"{name}.png", words) for name, words in FIGURES.items()),
    ]
    return (
        f"<!doctype html>\n<html lang='en'>\n<head><meta charset='utf-8'><title>{escape(title)}</title>"
        f"<meta name='viewport' content='width=device-width'><style>{STYLE}</style></head>\n<body><main>\n"
        + "\n".join(filter(None, parts))
        + "\n</main></body>\n</html>\n"
    )


def _headline(report: Mapping[str, Any]) -> Iterable[tuple[str, str, str]]:
    for name, words in in_tables().items():
        yield words, number(report["metrics"][name]), interval(report["intervals"][name])
    for name, words in (("auc", "AUC of melanoma"), ("sensitivity", "sensitivity for melanoma at the threshold")):
        melanoma = report["melanoma"] or {}
        if name in melanoma and name in melanoma["intervals"]:
            yield words, number(melanoma[name]), interval(melanoma["intervals"][name])


def _classes(report: Mapping[str, Any]) -> Iterable[tuple[Any, ...]]:
    for code, row in report["per_class"].items():
        bounds = interval(row["intervals"]["sensitivity"])
        scores = [number(row[name]) for name in ("sensitivity", "specificity", "precision", "auc")]
        yield code, row["support"], row["lesions"], scores[0], bounds, *scores[1:]


def _subgroups(report: Mapping[str, Any]) -> Iterable[tuple[Any, ...]]:
    for row in report["subgroups"]:
        bounds = interval(row["intervals"]["balanced_accuracy"])
        yield row["attribute"], row["value"], row["images"], row["lesions"], number(row["balanced_accuracy"]), bounds


def _table(head: Sequence[str] | None, rows: Iterable[Sequence[Any]]) -> str:
    """An HTML table whose first column names the row."""
    top = "" if head is None else f"<thead><tr>{_cells('th scope=col', head)}</tr></thead>"
    body = "".join(f"<tr>{_cells('th scope=row', row[:1])}{_cells('td', row[1:])}</tr>" for row in rows)
    return f"<table>{top}<tbody>{body}</tbody></table>"


def _cells(kind: str, values: Iterable[Any]) -> str:
    return "".join(f"<{kind}>{escape(str(value))}</{kind.split()[0]}>" for value in values)


def _figure(path: Path, words: str) -> str:
    if not path.is_file():
        return ""
    data = base64.b64encode(path.read_bytes()).decode()
    return f"<figure><img alt='{words}' src='data:image/png;base64,{data}'><figcaption>{words}</figcaption></figure>"
