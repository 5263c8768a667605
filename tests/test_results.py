"""The figures of docs/results.md and README.md on real skin follow from the predictions in results/."""

import re

import pytest
import yaml
from helpers.project import ROOT

from benchmarks.reference import FOLDER, scores, settings, table
from exp_tools.params import parse_params

CELL = re.compile(r"0\.\d{3} \[0\.\d{3}, 0\.\d{3}\]")


@pytest.fixture(scope="module")
def rows():
    lines = table(scores()).splitlines()[2:]
    return dict(zip(settings(), lines, strict=True))


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


def test_each_result_names_its_parameters_and_no_place_of_a_machine():
    for paths in settings().values():
        for path in paths:
            text = path.with_name(path.name.removesuffix(".csv.gz") + ".yaml").read_text()
            used = parse_params(yaml.safe_load(text))
            assert used.data.source == "ham10000"
            assert used.data.dir == "../HAM10000"
            assert not re.search(r"[:=] ?/", text)


def test_files_are_small_enough_for_git():
    assert all(path.stat().st_size < 200_000 for path in FOLDER.iterdir())
