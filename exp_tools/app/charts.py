"""Charts of the pages as Vega-Lite specifications, drawn by the browser in the colours of its theme."""

from collections.abc import Sequence
from typing import Any

DIAGONAL = {
    "data": {"values": [{"x": 0, "y": 0}, {"x": 1, "y": 1}]},
    "mark": {"type": "line", "strokeDash": [4, 4], "color": "gray", "strokeWidth": 1},
    "encoding": {"x": {"field": "x", "type": "quantitative"}, "y": {"field": "y", "type": "quantitative"}},
}
SHARE = {"domain": [0, 1]}
HEIGHT = 420


def confusion(classes: Sequence[str], ink: str) -> dict[str, Any]:
    """Of rows [actual, predicted], one an image: the share of each true class, with the number of images written in.

    `ink` is a colour that is read on the page; the fuller cells take white.
    """
    axes = {
        "x": {"field": "predicted", "type": "nominal", "scale": {"domain": list(classes)}, "axis": {"labelAngle": 0}},
        "y": {"field": "actual", "type": "nominal", "scale": {"domain": list(classes)}},
    }
    return {
        "height": HEIGHT,
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
    """Of rows [class, x, y] in drawing order: a line a class, both axes 0 to 1."""
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
    return {"height": HEIGHT, "transform": numbered, "layer": [lines, *([DIAGONAL] if diagonal else [])]}


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
    return {"height": HEIGHT, "layer": [points, DIAGONAL]}


def coverage() -> dict[str, Any]:
    """Of rows [coverage, score, value]: what is gained by leaving the least certain images to a human."""
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
    """Of rows [epoch, value, experiment]: a line an experiment."""
    return {
        "height": HEIGHT,
        "mark": {"type": "line", "point": True, "tooltip": True},
        "encoding": {
            "x": {"field": "epoch", "type": "quantitative", "axis": {"tickMinStep": 1}},
            "y": {"field": "value", "type": "quantitative", "title": label, "scale": {"zero": False}},
            "color": {"field": "experiment", "type": "nominal", "title": None, "legend": {"orient": "bottom"}},
        },
    }
