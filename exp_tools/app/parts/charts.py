"""Charts of the pages as Vega-Lite specifications, drawn by the browser in the colours of its theme."""

from collections.abc import Sequence
from html import escape
from typing import Any, Protocol

import pandas as pd
import streamlit as st

from exp_tools.serving.predictor import is_malignant, name_of


class Answer(Protocol):
    """What the bars show: a Prediction, or a row of a prediction table."""

    diagnosis: str
    probabilities: dict[str, float]


DIAGONAL = {
    "data": {"values": [{"x": 0, "y": 0}, {"x": 1, "y": 1}]},
    "mark": {"type": "line", "strokeDash": [4, 4], "color": "gray", "strokeWidth": 1},
    "encoding": {"x": {"field": "x", "type": "quantitative"}, "y": {"field": "y", "type": "quantitative"}},
}
SHARE = {"domain": [0, 1]}
HEIGHT = 420
NAMES = {"orient": "bottom", "columns": 1, "labelLimit": 300}
"""A legend of versions below the chart: their names are long, and side by side they are wider than a phone."""
SQUARE = {"width": 340, "height": 340}


def ink() -> str:
    """A colour that is read on the page, light or dark."""
    return "#E8EEF2" if st.context.theme.type == "dark" else "#17242D"


def draw(table: pd.DataFrame, spec: dict[str, Any], *, alt: str, **options: Any) -> None:
    """Draw a chart with its words in the colour of text; one with a width of its own keeps its shape.

    `options` are those of st.vega_lite_chart: what a click does.
    """
    words = {name: ink() for name in ("labelColor", "titleColor")}
    spec = spec | {"config": {"axis": words, "legend": words}}
    if "width" not in spec:
        st.vega_lite_chart(table, spec, alt=alt, **options)
        return
    with st.container(key=f"square {alt}"):  # padded, its axes are outside the square; others fit the page with theirs
        st.vega_lite_chart(table, spec | {"autosize": {"type": "pad"}}, width="content", alt=alt, **options)


def confusion(classes: Sequence[str], ink: str) -> dict[str, Any]:
    """Of rows [actual, predicted], one per image: the share of each true class, with the number of images written in.

    `ink` is a colour that is read on the page; the fuller cells take white.
    """
    axes = {
        "x": {"field": "predicted", "type": "nominal", "scale": {"domain": list(classes)}, "axis": {"labelAngle": 0}},
        "y": {"field": "actual", "type": "nominal", "scale": {"domain": list(classes)}},
    }
    return SQUARE | {
        "transform": [
            {"aggregate": [{"op": "count", "as": "images"}], "groupby": ["actual", "predicted"]},
            {"joinaggregate": [{"op": "sum", "field": "images", "as": "support"}], "groupby": ["actual"]},
            {"calculate": "datum.images / datum.support", "as": "share"},
        ],
        "encoding": axes,
        "layer": [
            {
                "mark": {"type": "rect", "color": "#0072B2", "tooltip": True},
                "encoding": {
                    "opacity": {
                        "field": "share",
                        "type": "quantitative",
                        "title": "share of the true class",
                        "scale": {"domain": [0, 1], "range": [0.12, 1]},
                        "legend": None,
                    }
                },
            },
            {
                "mark": {"type": "text"},
                "encoding": {
                    "text": {"field": "images"},
                    "color": {"condition": {"test": "datum.share > 0.5", "value": "white"}, "value": ink},
                },
            },
        ],
    }


def curves(x: str, y: str, x_label: str, y_label: str, *, diagonal: bool) -> dict[str, Any]:
    """Of rows [class, x, y] in drawing order: one line per class, both axes 0 to 1."""
    lines = {
        "mark": {"type": "line", "interpolate": "linear", "tooltip": True},
        "encoding": {
            "x": {"field": x, "type": "quantitative", "title": x_label, "scale": SHARE},
            "y": {"field": y, "type": "quantitative", "title": y_label, "scale": SHARE},
            "color": {"field": "class", "type": "nominal", "title": None, "legend": {"orient": "bottom"}},
            "order": {"field": "place"},
        },
    }
    numbered = [{"window": [{"op": "row_number", "as": "place"}]}]
    return SQUARE | {"transform": numbered, "layer": [lines, *([DIAGONAL] if diagonal else [])]}


def reliability() -> dict[str, Any]:
    """Of rows [calibration, confidence, accuracy, count]: points by their number of images, before and after."""
    points = {
        "mark": {"type": "line", "point": True, "tooltip": True},
        "encoding": {
            "x": {"field": "confidence", "type": "quantitative", "title": "confidence", "scale": SHARE},
            "y": {"field": "accuracy", "type": "quantitative", "title": "accuracy", "scale": SHARE},
            "color": {
                "field": "calibration",
                "type": "nominal",
                "title": "calibration",
                "legend": {"orient": "bottom"},
            },
            "tooltip": [{"field": name} for name in ("calibration", "confidence", "accuracy", "count")],
        },
    }
    return SQUARE | {"layer": [points, DIAGONAL]}


def coverage() -> dict[str, Any]:
    """Rows [coverage, score, value]: the gain from leaving the least certain images to a human."""
    return {
        "height": HEIGHT,
        "mark": {"type": "line", "tooltip": True},
        "encoding": {
            "x": {
                "field": "coverage",
                "type": "quantitative",
                "title": "share of images the model keeps",
                "scale": SHARE,
            },
            "y": {"field": "value", "type": "quantitative", "title": "score on them", "scale": {"zero": False}},
            "color": {"field": "score", "type": "nominal", "title": None, "legend": {"orient": "bottom"}},
        },
    }


def training(label: str) -> dict[str, Any]:
    """Of rows [epoch, value, experiment]: one line per experiment."""
    return {
        "height": HEIGHT,
        "mark": {"type": "line", "point": True, "tooltip": True},
        "encoding": {
            "x": {"field": "epoch", "type": "quantitative", "axis": {"tickMinStep": 1}},
            "y": {"field": "value", "type": "quantitative", "title": label, "scale": {"zero": False}},
            "color": {"field": "experiment", "type": "nominal", "title": None, "legend": NAMES},
        },
    }


STYLE = """
<style>
.probabilities { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
.probabilities caption { text-align: left; font-weight: 600; padding-bottom: .4rem; }
.probabilities th { text-align: left; font-weight: 400; padding: .3rem .7rem .3rem 0; width: 42%; border: 0; }
.probabilities tr.first th, .probabilities tr.first td { font-weight: 650; }
.probabilities td { padding: .3rem 0; border: 0; }
.probabilities td.number { text-align: right; width: 4.2rem; }
.probabilities small { display: block; opacity: .75; font-weight: 400; }
.probabilities .track { display: block; height: .95rem; border-radius: .3rem; overflow: hidden;
  background: color-mix(in srgb, currentColor 12%, transparent); }
.probabilities .bar { display: block; height: 100%; border-radius: .3rem; background: #2C86B8;
  transform-origin: left; animation: grow .8s cubic-bezier(.2, .7, .2, 1) both; }
.probabilities .bar.malignant { background: #D55E00; }
@keyframes grow { from { transform: scaleX(0); } }
@media (prefers-reduced-motion: reduce) { .probabilities .bar { animation: none; } }
</style>
"""


def probability_bars(prediction: Answer, *, true: str | None = None) -> str:
    """A table of every class, the most probable first: name, bar, percentage; malignant ones are named and orange.

    `true` is the class to mark as the true one; None: it is unknown.
    """
    ranked = sorted(prediction.probabilities.items(), key=lambda item: -item[1])
    rows = "".join(_row(code, share, code == prediction.diagnosis, code == true) for code, share in ranked)
    return f"{STYLE}<table class='probabilities'><caption>Probability of each class</caption>{rows}</table>"


def percent(share: float) -> str:
    """A share of 0 to 1 in words that never round to certainty."""
    if 0 < share < 0.0005:
        return "< 0.1 %"
    if 0.9995 <= share < 1:
        return "> 99.9 %"
    return f"{100 * share:.1f} %"


def _row(code: str, share: float, first: bool, true: bool) -> str:
    malignant = is_malignant(code)
    notes = [*(["true class"] if true else []), *(["malignant or pre-malignant"] if malignant else [])]
    note = f"<small>{', '.join(notes)}</small>" if notes else ""
    colour = "bar malignant" if malignant else "bar"
    return (
        f"<tr{' class=first' if first else ''}><th scope='row'>{escape(name_of(code))}{note}</th>"
        f"<td><span class='track'><span class='{colour}' style='width:{100 * share:.2f}%'>"
        f"</span></span></td><td class='number'>{percent(share)}</td></tr>"
    )
