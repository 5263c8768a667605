"""The pictures of the benchmark are the same for the same seed, and both halves of the kinds have every group."""

import numpy as np
import pandas as pd
import pytest
from helpers.project import ROOT

from benchmarks.foreign import drawings, photographs, skin
from benchmarks.foreign.material import Kind, kinds, pictures
from exp_tools.errors import UserError


def test_the_halves_have_every_group_and_enough_pictures():
    halves = [{kind.group for kind in kinds() if kind.chooses == one} for one in (True, False)]
    assert halves == [{"photograph", "clinical-like", "drawn"}] * 2
    assert len({kind.name for kind in kinds()}) == len(kinds()) == 32


@pytest.mark.parametrize("name", sorted(drawings.KINDS | skin.KINDS))
def test_a_drawing_is_the_same_again_and_another_with_another_seed(name):
    kind = Kind(name, "drawn", True, 0)
    one, again, other = (np.asarray(pictures(kind, seed, 1)[0]) for seed in (0, 0, 1))
    assert np.array_equal(one, again)
    assert one.shape != other.shape or not np.array_equal(one, other)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(photographs.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install --no-deps scikit-image"):
        pictures(next(kind for kind in kinds() if kind.name == "cup of coffee"), 0, 1)


def test_the_page_has_the_figures_of_the_table_and_a_row_for_each_kind():
    found = pd.read_csv(ROOT / "results/foreign.csv")
    assert found[["kind", "group", "chooses"]].to_numpy().tolist() == [list(kind[:3]) for kind in kinds()]
    page = (ROOT / "docs/foreign.md").read_text(encoding="utf-8")
    for (chooses, group), rows in found.groupby(["chooses", "group"]):
        figures = f"{len(rows)} | {rows['pictures'].sum()} | {rows['flagged'].mean():.3f} | {rows['fpr95'].mean():.3f}"
        assert f"| {'chose' if chooses else 'reports'} | {group} | {figures} |" in page
    reports = found[~found["chooses"]]
    assert reports["pictures"].sum() >= 200
    assert reports["flagged"].mean() >= 0.95
