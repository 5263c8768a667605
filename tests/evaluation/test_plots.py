"""The page of `dvc plots`: whole, said what it is, and every chart filled from the tables that evaluate writes."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from dvc_render.vega import VegaRenderer
from helpers.predictions import scaled
from helpers.project import ROOT
from PIL import Image

from exp_tools.evaluation.plots.write import write_curves
from exp_tools.evaluation.predictions import prediction_table
from exp_tools.evaluation.report.build import score_set

CLASSES = ["bkl", "mel", "nv"]
NEW = {
    "risk_coverage": ("risk_coverage.csv", "coverage", "accuracy"),
    "subgroups": ("subgroups.csv", "score", "value"),
}


@pytest.fixture(scope="module")
def curves(tmp_path_factory):
    """A folder with every table of curves, of 60 images of 30 lesions."""
    rng = np.random.default_rng(0)
    lesion = np.arange(60) // 2
    labels = rng.choice(3, 30)[lesion]
    ids = [f"L_{number}" for number in lesion]
    table = pd.DataFrame({"image_id": [f"I_{n}" for n in range(60)], "lesion_id": ids, "group_id": ids})
    table = table.assign(dx=np.array(CLASSES)[labels], source="synthetic")
    logits = rng.normal(size=(60, 3)) + 1.5 * np.eye(3)[labels]
    table = prediction_table(table, "test", logits, CLASSES, scaled(len(CLASSES), 2.0))
    table = table.assign(sex="female", age=np.nan, localization="back", dx_type="histo")
    thresholds = {"melanoma": 0.3, "abstain": 0.5}
    report = score_set(
        table,
        CLASSES,
        calibration=scaled(len(CLASSES), 2.0),
        thresholds=thresholds,
        costs=None,
        resamples=20,
        seed=0,
    )
    folder = tmp_path_factory.mktemp("curves")
    write_curves(folder, table, CLASSES, scaled(len(CLASSES), 2.0), report)
    return folder


def plots():
    """The charts of dvc.yaml by name, and its folders of pictures."""
    entries = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["plots"]
    charts = {name: chart for entry in entries if isinstance(entry, dict) for name, chart in entry.items()}
    return charts, [entry for entry in entries if isinstance(entry, str)]


def sources(chart):
    """(file, column) of every axis of a chart."""
    return [pair for axis in ("x", "y") if isinstance(chart[axis], dict) for pair in chart[axis].items()]


@pytest.mark.parametrize("name", sorted(plots()[0]))
def test_each_chart_is_said_and_drawn_from_columns_that_are_written(name, curves):
    chart = plots()[0][name]
    assert chart["title"]
    assert chart["x_label"]
    assert chart["y_label"]
    if "template" in chart:
        assert (ROOT / ".dvc/plots" / f"{chart['template']}.json").is_file()
    for file, column in sources(chart):
        if file.startswith("plots/curves/"):
            assert column in pd.read_csv(curves / Path(file).name).columns, (file, column)


def fields(node):
    """Every value of a "field" key in a nested specification."""
    if isinstance(node, list):
        return set().union(*map(fields, node))
    if not isinstance(node, dict):
        return set()
    own = {node["field"]} if isinstance(node.get("field"), str) else set()
    return own.union(*map(fields, node.values()))


def computed(node):
    """Every name that a transform of a specification makes."""
    made = set()
    for transform in node["transform"]:
        names = transform.get("as", [entry["as"] for entry in transform.get("joinaggregate", [])])
        made |= {names} if isinstance(names, str) else set(names)
    return made


def filled(template, table, x, y):
    points = table.assign(rev="workspace").astype(str).to_dict("records")
    said = {"x_label": "X", "y_label": "Y", "title": "T"}
    places = {"template": template, "template_dir": str(ROOT / ".dvc/plots"), "x": x, "y": y}
    return VegaRenderer(points, template, **places, **said).get_filled_template()


@pytest.mark.parametrize("name", sorted(NEW))
def test_dvc_fills_the_template_and_every_field_it_draws_exists(name, curves):
    file, x, y = NEW[name]
    table = pd.read_csv(curves / file)
    specification = filled(name, table, x, y)
    assert "<DVC_METRIC" not in json.dumps(specification)
    assert specification["title"]["text"] == "T"
    assert fields(specification) <= {*table.columns, "rev"} | computed(specification)
    assert "rev" in fields(specification)


def test_training_curves_are_named_by_their_files():
    table = pd.DataFrame({"step": [1, 2], "loss": [1.5, 0.5], "filename": ["train/loss.tsv", "val/loss.tsv"]})
    specification = filled("training", table, "step", "loss")
    assert "<DVC_METRIC" not in json.dumps(specification)
    assert fields(specification) == {"step", "loss", "rev", "line"}
    assert computed(specification) == {"line"}


def test_subgroups_have_the_metrics_that_the_chart_chooses_from(curves):
    text = (ROOT / ".dvc/plots/subgroups.json").read_text(encoding="utf-8")
    written = set(pd.read_csv(curves / "subgroups.csv")["metric"])
    assert len(written) == 8
    for metric in written:
        assert f"'{metric}'" in text, metric


def test_the_page(tmp_path, curves):
    charts, pictures = plots()
    listed = [*({name: chart} for name, chart in charts.items()), *pictures]
    shutil.copytree(curves, tmp_path / "plots/curves")
    for chart in charts.values():
        for file, column in sources(chart):
            if not file.startswith("plots/curves/"):
                (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / file).write_text(f"step\t{column}\n1\t0.5\n2\t0.25\n", encoding="utf-8")
    for folder in pictures:
        (tmp_path / folder).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / folder / "picture.png")
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"plots": listed}), encoding="utf-8")
    dvc(tmp_path, "init", "--no-scm", "-q")
    shutil.copytree(ROOT / ".dvc/plots", tmp_path / ".dvc/plots")
    shutil.copy(ROOT / ".dvc/config", tmp_path / ".dvc/config")
    assert "failed to load" not in dvc(tmp_path, "plots", "show")
    page = (tmp_path / "dvc_plots/index.html").read_text(encoding="utf-8")
    for chart in charts.values():
        assert page.count(json.dumps(chart["title"])) == 1, chart["title"]
    assert page.count("<img ") == len(pictures)
    assert page.count("not a medical device") == 1
    assert "cdn.jsdelivr.net" in page.split("<body>")[0]
    assert not any(mark in page for mark in ("{plot_divs}", "{scripts}", "{refresh_tag}", "<DVC_METRIC"))


def dvc(folder, *words):
    """What a dvc command prints, run as it would be in a project of its own."""
    command = [sys.executable, "-m", "dvc", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr
