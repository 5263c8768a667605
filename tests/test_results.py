"""The figures of docs/results.md and README.md on real skin follow from the predictions in results/."""

import json
import re

import pandas as pd
import pytest
import yaml
from helpers.project import ROOT

from benchmarks.reference import DRAWN, FOLDER, PICTURE, draw, leak, scores, settings, table
from exp_tools.cli.main import main

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
    for key in DRAWN:
        difference, low, high = leak(found, key)
        assert f"{difference:+.3f} [{low:+.3f}, {high:+.3f}]" in text


def test_the_picture_is_drawn_from_the_predictions(found, tmp_path):
    draw(found, tmp_path / "again.png")
    assert (tmp_path / "again.png").read_bytes() == PICTURE.read_bytes()


def test_the_comparison_of_recipes_is_that_of_their_predictions_on_validation(capsys):
    text = (ROOT / "docs/results.md").read_text()
    found = settings(FOLDER / "recipe")
    assert len(found) == 8
    for name, (path,) in found.items():
        assert main(["score", str(path), "--split", "val", "--resamples", "10", "--json"]) == 0
        metrics = json.loads(capsys.readouterr().out)["metrics"]
        row = next(line for line in text.splitlines() if line.startswith(f"| `{name}`"))
        assert row.endswith(f"| {metrics['balanced_accuracy']:.3f} | {metrics['log_loss']:.3f} |")
        assert set(pd.read_csv(path)["split"]) == {"val"}


def test_each_result_names_its_parameters_and_no_place_of_a_machine():
    for paths in [*settings().values(), *settings(FOLDER / "recipe").values()]:
        for path in paths:
            text = path.with_name(path.name.removesuffix(".csv.gz") + ".yaml").read_text()
            used = yaml.safe_load(text)  # of its time: later versions may have more parameters
            assert (used["data"]["source"], used["data"]["dir"]) == ("ham10000", "../HAM10000")
            assert not re.search(r"[:=] ?/", text)


def test_files_are_small_enough_for_git():
    assert all(path.stat().st_size < 200_000 for path in FOLDER.rglob("*.*"))
