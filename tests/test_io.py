"""Tables hold no cell that a spreadsheet computes, and are read back as they were."""

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exp_tools.data.sources.tables import read_table
from exp_tools.io import bare_cells, guard_cells, write_csv

FORMULAS = [
    "=HYPERLINK(\"http://example.org\",\"click\")",
    "=1+1",
    "+1+1",
    "-2+3+cmd|' /C calc'!A0",
    "@SUM(A1)",
    "\t=1+1",
    "\r=1+1",
    "＝1+1",
    "=",
    "-back",
]  # fmt: skip
HARMLESS = ["mel", "", "-", "+", "-1", "+1.5", "-1e-5", "-.5", "1=1", "a@b", " =1", "'quoted'", "'", "IMG_1-2.jpg", "–"]


@pytest.mark.parametrize("text", FORMULAS)
def test_what_a_spreadsheet_computes_gets_an_apostrophe(tmp_path, text):
    table = pd.DataFrame({"image_id": [text, "a"], "age": [-1.5, 2.0]})
    assert guard_cells(table)["image_id"].tolist() == [f"'{text}", "a"]
    assert guard_cells(table)["age"].tolist() == [-1.5, 2.0]
    write_csv(tmp_path / "t.csv", table)
    pd.testing.assert_series_equal(
        bare_cells(pd.read_csv(tmp_path / "t.csv", dtype={"image_id": str}))["image_id"], table["image_id"]
    )


@pytest.mark.parametrize("text", HARMLESS)
def test_any_other_text_stays_as_it_is(text):
    table = pd.DataFrame({"image_id": [text]})
    assert guard_cells(table) is table
    assert bare_cells(table) is table


@given(st.lists(st.text(st.sampled_from("'=+-@\t\r\n1.e aß"), max_size=6), min_size=1))
def test_every_text_comes_back(cells):
    table = pd.DataFrame({"text": cells}, dtype=object)
    guarded = guard_cells(table)
    assert not [cell for cell in guarded["text"] if cell[:1] in "=@\t\r\n" and cell]
    assert bare_cells(guarded)["text"].tolist() == cells


def test_mixed_columns_and_the_index_stay(tmp_path):
    table = pd.DataFrame({"flag": [True, "", "=x"], "n": pd.array([1, None, 3], "Int64")}, index=[4, 5, 9])
    guarded = guard_cells(table)
    assert guarded["flag"].tolist() == [True, "", "'=x"]
    assert guarded.index.tolist() == [4, 5, 9]
    assert guarded["n"].equals(table["n"])


def test_our_own_table_is_read_as_a_users_table_too(tmp_path):
    write_csv(tmp_path / "labels.csv", pd.DataFrame({"image_id": ["=a", "b"], "dx": ["mel", "nv"]}))
    assert "'=a,mel" in (tmp_path / "labels.csv").read_text()
    assert read_table(tmp_path / "labels.csv")["image_id"].tolist() == ["=a", "b"]
