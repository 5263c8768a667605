"""Figures: the same bytes each time, nothing cut off, right where classes are missing; DVC fills our templates."""

import json
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from dvc_render.vega import VegaRenderer
from helpers.predictions import scaled
from helpers.project import ROOT
from matplotlib.figure import Figure
from PIL import Image
from statsmodels.stats.proportion import proportion_confint

from exp_tools.evaluation.metrics.bootstrap import class_intervals
from exp_tools.evaluation.metrics.calibration import reliability_before_after
from exp_tools.evaluation.metrics.class_calibration import class_calibration
from exp_tools.evaluation.metrics.classification import class_metrics
from exp_tools.evaluation.metrics.prevalence import decision_curve, prevalence_report
from exp_tools.evaluation.plots import classification
from exp_tools.evaluation.plots.calibration import draw_class_calibration, draw_decision_curve, draw_reliability
from exp_tools.evaluation.plots.class_counts import draw_class_distribution
from exp_tools.evaluation.plots.points import (
    AVERAGE,
    averaged,
    class_bars,
    confusion_pairs,
    precision_recall_points,
    roc_points,
)
from exp_tools.evaluation.plots.style import wilson
from exp_tools.evaluation.validation import confusion, softmax

CLASSES = ["akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"]
PRESENT = [1, 4, 5]  # akiec, bkl, df and vasc do not occur


def results():
    rng = np.random.default_rng(0)
    labels = rng.choice(PRESENT, 150)
    logits = 3 * (rng.normal(size=(150, 7)) + 1.5 * np.eye(7)[labels])
    return logits, softmax(logits), labels


def draw_all(folder):
    logits, probabilities, labels = results()
    per_class = class_metrics(probabilities, labels, CLASSES)
    counts = pd.DataFrame({"train": 700, "val": 1500, "test": range(7)}, index=CLASSES)
    title = "sample data, test split"
    matrix = confusion(labels, probabilities.argmax(axis=1), 7)
    classification.draw_confusion(folder / "confusion.png", matrix, CLASSES, title)
    classification.draw_roc(folder / "roc.png", roc_points(probabilities, labels, CLASSES), per_class, title)
    classification.draw_precision_recall(
        folder / "precision_recall.png", precision_recall_points(probabilities, labels, CLASSES), per_class, title
    )
    draw_reliability(
        folder / "reliability.png", reliability_before_after(logits, labels, scaled(logits.shape[1], 2.0)), title
    )
    draw_class_distribution(folder / "classes.png", counts, title)
    draw_class_distribution(folder / "one.png", counts[["train"]], title)
    classification.draw_class_bars(folder / "bars.png", per_class, title)


@pytest.fixture
def drawn(monkeypatch):
    """The Figure objects behind the files, by file name."""
    kept = {}
    savefig = Figure.savefig

    def keep(figure, path, **options):
        kept[Path(path).name.split(".png")[0].lstrip(".")] = figure
        savefig(figure, path, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    return kept


def texts(figure):
    found = list(figure.legends)
    for axes in figure.axes:
        found += [axes.get_legend()] if axes.get_legend() else []
    found = [text for legend in found for text in legend.get_texts()]
    for axes in figure.axes:
        found += [*axes.texts, *axes.get_xticklabels(), *axes.get_yticklabels()]
    return [text.get_text() for text in found] + [axes.get_title(loc="left") for axes in figure.axes]


def test_all_pictures(tmp_path, drawn):
    draw_all(tmp_path / "a")
    assert_titles_and_legends(drawn)
    paths = sorted((tmp_path / "a").iterdir())
    assert len(paths) == 7
    for path in paths:
        assert_whole(path)
    with matplotlib.rc_context({"font.size": 25, "lines.linewidth": 9, "savefig.facecolor": "red"}):
        draw_all(tmp_path / "b")  # what a matplotlibrc says must not matter
    for path in paths:
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def assert_whole(path):
    """Nothing touches the edge of the picture, there is something in it, and no software version."""
    with Image.open(path) as image:
        assert image.info["Software"] == "exp-tools"
        pixels = np.asarray(image.convert("L"))
    for border in (pixels[:3], pixels[-3:], pixels[:, :3], pixels[:, -3:]):
        assert (border == 255).all(), path.name
    assert (pixels < 100).mean() > 0.002, path.name


def assert_titles_and_legends(drawn):
    _, probabilities, labels = results()
    per_class = class_metrics(probabilities, labels, CLASSES)
    for name in ("confusion", "roc", "precision_recall", "reliability", "bars"):
        assert any(text.endswith("sample data, test split, n = 150 images") for text in texts(drawn[name])), name
    for code in ("bcc", "mel", "nv"):
        row = per_class[code]
        assert f"{code}  AUC {row['auc']:.2f}  (n={row['support']})" in texts(drawn["roc"])
        assert f"{code}  AP {row['average_precision']:.2f}  (n={row['support']})" in texts(drawn["precision_recall"])
    assert not any(text.startswith("vasc") for text in texts(drawn["roc"]))  # no curve, no legend entry
    assert texts(drawn["bars"]).count("–") == 8 + sum(np.isnan(row["precision"]) for row in per_class.values())
    assert "vasc (n=0)" in texts(drawn["confusion"])
    assert "2,201 (14.3%)  700 / 1,500 / 1" in texts(drawn["classes"])


def test_confusion_is_coloured_by_the_share_of_the_true_class(tmp_path, drawn):
    classification.draw_confusion(tmp_path / "c.png", np.array([[900, 100], [1, 3]]), ["nv", "mel"], "t")
    shares = drawn["c"].axes[0].images[0].get_array()
    assert np.asarray(shares).tolist() == [[0.9, 0.1], [0.25, 0.75]]
    assert {"900\n90%", "1\n25%"} <= set(texts(drawn["c"]))


def test_a_class_keeps_its_colour_and_no_two_lines_look_alike(tmp_path, drawn):
    codes = [f"class {number:02d}" for number in range(9)]
    rng = np.random.default_rng(0)
    probabilities, labels = softmax(rng.normal(size=(90, 9))), np.arange(90) % 9
    per_class = class_metrics(probabilities, labels, codes)
    classification.draw_roc(tmp_path / "all.png", roc_points(probabilities, labels, codes), per_class, "t")
    some = roc_points(probabilities, labels, codes).query("`class` != 'class 00'")
    classification.draw_roc(tmp_path / "some.png", some, per_class, "t")

    def looks(name):
        lines = [line for line in drawn[name].axes[0].get_lines() if line.get_label().startswith("class")]
        return [(line.get_label()[:8], line.get_color(), str(line._dash_pattern)) for line in lines]

    assert len({look[1:] for look in looks("all")}) == 9
    assert len({look[2] for look in looks("all")[:7]}) == 7  # told apart without colours
    assert looks("some") == looks("all")[1:]


def test_intervals_small_groups_and_operating_points_are_drawn(tmp_path, drawn):
    _, probabilities, labels = results()
    per_class = class_metrics(probabilities, labels, CLASSES)
    groups = np.arange(len(labels))
    intervals = class_intervals(probabilities, labels, groups, CLASSES, resamples=50)
    intervals["mel"]["sensitivity"]["small"] = True
    rows = {code: row | {"lesions": 3, "intervals": intervals[code]} for code, row in per_class.items()}
    classification.draw_class_bars(tmp_path / "bars.png", rows, "t")
    axes = drawn["bars"].axes[0]
    ends = {tuple(line.get_ydata()) for line in axes.get_lines() if len(line.get_ydata()) == 2}
    for code in ("bcc", "mel", "nv"):
        bounds = intervals[code]["sensitivity"]
        assert (bounds["low"], bounds["high"]) in ends, code
    faces = {line.get_markerfacecolor() for line in axes.get_lines() if line.get_label().startswith("_")}
    assert "white" in faces
    assert "mel\nn=" + f"{per_class['mel']['support']}\n3 lesions" in texts(drawn["bars"])
    flagged = {"sensitivity": 0.9, "specificity": 0.7}
    classification.draw_roc(tmp_path / "roc.png", roc_points(probabilities, labels, CLASSES), per_class, "t", flagged)
    lines = drawn["roc"].axes[0].get_lines()
    marks = {(line.get_marker(), *np.round([*line.get_xdata(), *line.get_ydata()], 6)) for line in lines}
    assert ("*", 0.3, 0.9) in marks
    assert ("o", round(1 - per_class["mel"]["specificity"], 6), round(per_class["mel"]["sensitivity"], 6)) in marks


def test_class_calibration_and_the_decision_curve(tmp_path, drawn):
    _, probabilities, labels = results()
    groups = np.arange(len(labels))
    by_class = class_calibration(probabilities, labels, groups, CLASSES, resamples=50)
    draw_class_calibration(tmp_path / "cal.png", probabilities, labels, by_class, "t")
    words = "mel (n={})\nO/E {ratio:.3f}, slope {slope:.3f}".format((labels == 4).sum(), **by_class["mel"])
    assert words in texts(drawn["cal"])
    scores, positive = probabilities[:, 4], labels == 4
    report = prevalence_report(scores, positive, scores > 0.5, groups, stated=0.05, resamples=50)
    curve = decision_curve(scores, positive, 0.05)
    at = {round(row["threshold"], 2): row for row in curve.to_dict("records")}
    for row in report["net_benefit"]:
        assert at[row["threshold"]]["model"] == pytest.approx(row["model"])
    draw_decision_curve(tmp_path / "curve.png", curve, report, "mel", "t")
    assert "Net benefit of flagging mel at a prevalence of 5.0%\nt, n = 150 images" in texts(drawn["curve"])
    for name in ("cal", "curve"):
        assert_whole(tmp_path / f"{name}.png")


@pytest.mark.parametrize("kind", ["svg", "pdf"])
def test_vector_figures_are_the_same_bytes(tmp_path, kind):
    _, probabilities, labels = results()
    per_class, points = class_metrics(probabilities, labels, CLASSES), roc_points(probabilities, labels, CLASSES)
    for name in ("a", "b"):
        classification.draw_roc(tmp_path / f"{name}.{kind}", points, per_class, "t")
    content = (tmp_path / f"a.{kind}").read_bytes()
    assert content == (tmp_path / f"b.{kind}").read_bytes()
    assert {"svg": b"<svg", "pdf": b"%PDF"}[kind] in content[:2000]
    assert b"matplotlib.org" not in content or kind == "svg"


def test_wilson_is_that_of_statsmodels():
    low, high = wilson(np.array([0, 3, 10]), np.array([10, 10, 10]))
    for right, bounds in zip((0, 3, 10), zip(low, high, strict=True), strict=True):
        assert bounds == pytest.approx(proportion_confint(right, 10, method="wilson"), abs=1e-4)


def test_the_average_of_curves():
    points = pd.DataFrame({"class": ["a"] * 2 + ["mel"] * 3, "x": [0, 1, 0, 0, 1], "y": [0, 1, 0, 0.5, 1.0]})
    mean = averaged(points, "mel")
    assert mean["class"].unique().tolist() == [AVERAGE, "mel"]
    half = mean[(mean["class"] == AVERAGE) & (mean["x"] == 0.5)]
    assert half["y"].item() == pytest.approx((0.5 + 0.75) / 2)
    assert averaged(points, None)["class"].unique().tolist() == [AVERAGE]


def data_of_templates():
    logits, probabilities, labels = results()
    return {
        "roc": (roc_points(probabilities, labels, CLASSES), "false_positive_rate", "true_positive_rate"),
        "precision_recall": (precision_recall_points(probabilities, labels, CLASSES), "recall", "precision"),
        "reliability": (
            reliability_before_after(logits, labels, scaled(logits.shape[1], 2.0)),
            "confidence",
            "accuracy",
        ),
        "confusion_shares": (confusion_pairs(labels, probabilities.argmax(axis=1), CLASSES), "predicted", "actual"),
        "class_bars": (class_bars(class_metrics(probabilities, labels, CLASSES)), "value", "class"),
    }


def fields(node):
    """Every value of a "field" key in a nested specification."""
    if isinstance(node, list):
        return set().union(*map(fields, node))
    if not isinstance(node, dict):
        return set()
    own = {node["field"]} if "field" in node else set()
    return own.union(*map(fields, node.values()))


@pytest.mark.parametrize("name", sorted(data_of_templates()))
def test_dvc_fills_the_template_and_every_field_it_draws_exists(name):
    table, x, y = data_of_templates()[name]
    points = table.assign(rev="workspace").astype(str).to_dict("records")
    renderer = VegaRenderer(
        points,
        name,
        template=name,
        template_dir=str(ROOT / ".dvc/plots"),
        x=x,
        y=y,
        x_label="X",
        y_label="Y",
        title="T",
    )
    filled = renderer.get_filled_template()
    assert "<DVC_METRIC" not in json.dumps(filled)
    assert filled["data"]["values"] == points
    assert filled["title"]["text"] == "T"
    computed = {"point", "at", "images", "written", "share", "support"}
    assert {x, y, "rev"} <= fields(filled) - computed <= {*table.columns, "rev"}
