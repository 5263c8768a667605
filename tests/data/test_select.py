"""A limited set keeps whole lesions and the make-up of the classes; a local copy is only ever linked."""

import numpy as np
import pytest

from exp_tools.data.labels.select import subset_of_lesions
from exp_tools.data.synthetic.generate import sample_table
from exp_tools.io import link_file


@pytest.mark.parametrize("limit", [60, 400, 2000])
def test_subset_is_whole_lesions_in_proportion(limit):
    table = sample_table(4000, seed=1)
    keep = subset_of_lesions(table, limit, seed=0)
    assert keep.sum() <= limit
    assert table.assign(keep=keep).groupby("lesion_id")["keep"].nunique().max() == 1
    kept, whole = table[keep]["dx"].value_counts(), table["dx"].value_counts()
    assert set(kept.index) == set(whole.index)
    assert ((kept - whole * limit / 4000).abs() <= 7).all()  # a lesion has up to six images


def test_subset_is_seeded():
    table = sample_table(1000, seed=1)
    first, again, other = (subset_of_lesions(table, 300, seed) for seed in (0, 0, 1))
    assert (first == again).all()
    assert (first != other).any()
    assert subset_of_lesions(table, 1000, 0).all()


def test_a_file_is_linked_not_copied(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"original")
    link_file(tmp_path / "a.jpg", tmp_path / "raw/deep/a.jpg")
    assert (tmp_path / "raw/deep/a.jpg").is_symlink()
    assert (tmp_path / "raw/deep/a.jpg").read_bytes() == b"original"
    assert (tmp_path / "a.jpg").stat().st_nlink == 1


def test_without_links_a_copy_is_made(tmp_path, monkeypatch):
    def refuse(self, target):
        raise OSError("a required privilege is not held by the client")

    monkeypatch.setattr("pathlib.Path.symlink_to", refuse)
    (tmp_path / "a.jpg").write_bytes(b"original")
    link_file(tmp_path / "a.jpg", tmp_path / "raw/a.jpg")
    (tmp_path / "raw/a.jpg").write_bytes(b"changed")
    assert (tmp_path / "a.jpg").read_bytes() == b"original"


def test_many_equal_lesions_fill_the_limit():
    table = sample_table(500, seed=3).assign(lesion_id=[f"L{n}" for n in range(500)], dx="nv")
    assert subset_of_lesions(table, 100, 0).sum() == 100
    assert np.flatnonzero(subset_of_lesions(table, 100, 0)).std() > 100  # not the first hundred
