"""The figures of docs/results.md and README.md on real skin follow from the predictions in results/."""

import io
import json
import re
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from helpers.project import ROOT

from benchmarks.reference import DRAWN, FOLDER, LEAKS, PICTURE, draw, leak, scores, settings, table
from exp_tools.cli.main import main
from exp_tools.evaluation.predictions import read_predictions
from exp_tools.models.released import released_model
from exp_tools.serving.predictor import Predictor

CELL = re.compile(r"0\.\d{3} \[0\.\d{3}, 0\.\d{3}\]")


@pytest.fixture(scope="module")
def found():
    return scores()


@pytest.fixture
def rows(found):
    return dict(zip(found, table(found).splitlines()[2:], strict=True))


def test_the_table_of_the_docs_is_the_one_that_the_predictions_give(rows):
    text = (ROOT / "docs/results.md").read_text()
    assert len(rows) >= 5
    for name, line in rows.items():
        assert line in text, f"{name}: python -m benchmarks.reference"


def test_the_readme_shows_rows_of_that_table(rows):
    shown = [line for line in (ROOT / "README.md").read_text().splitlines() if CELL.search(line)]
    assert len(shown) >= 4
    for line in shown:
        named = re.findall(r"`([\w-]+)`", line)
        assert len(named) == 1, line
        assert set(CELL.findall(line)) <= set(CELL.findall(rows[named[0]])), line


def test_what_the_leak_is_worth_is_said_as_it_follows(found):
    text = " ".join((ROOT / "docs/results.md").read_text().split())
    for key in LEAKS:
        difference, low, high = leak(found, key)
        assert f"{difference:+.3f} [{low:+.3f}, {high:+.3f}]" in text


def test_the_picture_is_drawn_from_the_predictions(found, tmp_path):
    draw(found, tmp_path / "again.png")
    assert (tmp_path / "again.png").read_bytes() == PICTURE.read_bytes()


def test_the_comparison_of_recipes_is_that_of_their_predictions_on_validation(capsys):
    text = (ROOT / "docs/results.md").read_text()
    found = settings(FOLDER / "recipe")
    assert len(found) == 8
    curves = pd.read_csv(FOLDER / "recipe" / "curves.csv").groupby("setting")["macro_auc"]
    for name, (path,) in found.items():
        assert main(["score", str(path), "--split", "val", "--resamples", "10", "--json"]) == 0
        metrics = json.loads(capsys.readouterr().out)["metrics"]
        row = next(line for line in text.splitlines() if line.startswith(f"| `{name}`"))
        curve = curves.get_group(name).to_numpy()
        assert f"| {curve.max():.3f} ({curve.argmax() + 1}) | {curve[-1]:.3f} |" in row
        assert row.endswith(f"| {metrics['balanced_accuracy']:.3f} | {metrics['log_loss']:.3f} |")
        assert set(pd.read_csv(path)["split"]) == {"val"}


@pytest.mark.parametrize("metric", DRAWN)
@pytest.mark.parametrize(
    ("base", "better"),
    [
        ("probe-both", "reference"),
        ("reference", "reference-224"),
        ("probe-both", "probe-both-meta"),
        ("attention-control", "attention"),
        ("metadata-control", "metadata"),
    ],
)
def test_differences_that_the_page_names_are_those_of_the_comparison(base, better, metric, capsys):
    given = [f"{name}={','.join(map(str, settings()[name]))}" for name in (base, better)]
    assert main(["compare", *given, "--split", "test", "--metric", "balanced_accuracy", "--format", "csv"]) == 0
    rows = pd.read_csv(io.StringIO(capsys.readouterr().out)).set_index(["name", "metric"])
    row = rows.loc[better, metric]
    text = " ".join((ROOT / "docs/results.md").read_text().split())
    assert f"{row.difference:.3f} [{row.difference_low:.3f}, {row.difference_high:.3f}]" in text


def test_the_scores_of_the_loop_and_of_the_plain_script_are_those_of_their_curves():
    curves = pd.read_csv(FOLDER / "loop.csv")
    text = (ROOT / "docs/results.md").read_text()
    for name, seeds in curves.groupby("setting"):
        best = seeds.loc[seeds.groupby("seed")["macro_auc"].idxmax()]
        assert len(best) == 3
        cells = [
            f"{' '.join(f'{value:.3f}' for value in best[key])}, mean {best[key].mean():.3f}"
            for key in ("macro_auc", "balanced_accuracy")
        ]
        assert f"| {cells[0]} | {cells[1]} |" in text, name


def test_the_released_model_gives_the_predictions_of_its_row(real_data):
    """On test images as they were packed: from copies of 300x225 pixels."""
    predictor = Predictor(released_model(ROOT))
    rows, classes = read_predictions(FOLDER / "reference-224-seed2.csv.gz")
    rows = rows[rows["split"] == "test"].iloc[::50]
    with zipfile.ZipFile(real_data / "ham10000-300x225.zip") as archive:
        names = {Path(name).stem: name for name in archive.namelist()}
        pixels = [predictor.prepare(archive.read(names[image])) for image in rows["image_id"]]
    logits = predictor.engine.logits(np.stack(pixels), np.zeros((len(pixels), 3), np.float32))
    kept = rows[[f"logit_{name}" for name in classes]].to_numpy()
    assert len(pixels) > 25
    assert np.abs(logits - kept).max() < 0.06  # float16
    decided = predictor.calibration.decisions(predictor.calibration.probabilities(logits))
    assert np.array_equal(np.array(classes)[decided], rows["predicted"])


def test_each_result_names_its_parameters_and_no_place_of_a_machine():
    for paths in [*settings().values(), *settings(FOLDER / "recipe").values()]:
        for path in paths:
            text = path.with_name(path.name.removesuffix(".csv.gz") + ".yaml").read_text()
            used = yaml.safe_load(text)  # of its time: later versions may have more parameters
            assert (used["data"]["source"], used["data"]["dir"]) == ("ham10000", "../HAM10000")
            assert not re.search(r"[:=] ?/", text)


def test_files_are_small_enough_for_git():
    assert all(path.stat().st_size < 200_000 for path in FOLDER.rglob("*.*"))
