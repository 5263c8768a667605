"""Splits: no lesion in two, classes in proportion, the same for the same seed."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exp_tools.data.files import write_csv
from exp_tools.data.labels import read_text_table
from exp_tools.data.splits import (
    SPLITS,
    allocate_groups,
    assert_disjoint,
    assign_splits,
    leak_of_random_split,
    read_splits,
    summarise_splits,
)
from exp_tools.errors import UserError


@pytest.fixture
def ham(real_data) -> pd.DataFrame:
    table = read_text_table(real_data / "HAM10000_metadata.csv").reset_index(drop=True)
    return table.assign(group_id=table["lesion_id"])[["image_id", "group_id", "dx"]]


def table_of(groups: list[tuple[str, int]]) -> pd.DataFrame:
    """A label table from (diagnosis, images) a group."""
    rows = [(f"G{number}", dx) for number, (dx, size) in enumerate(groups) for _ in range(size)]
    return pd.DataFrame(
        {"image_id": [f"I{n}" for n in range(len(rows))], "group_id": [g for g, _ in rows], "dx": [d for _, d in rows]}
    )


def test_holdout_meets_each_class_fraction_within_half_a_point(ham, params):
    splits = assign_splits(ham, params.split)
    assert_disjoint(splits)
    share = splits.groupby(["dx", "split"]).size().unstack() / splits.groupby("dx").size().to_numpy()[:, None]
    for split, fraction in zip(SPLITS, params.split.fractions, strict=True):
        assert (share[split] - fraction).abs().max() <= 0.005


def test_small_and_large_lesions_are_spread_alike(ham, params):
    splits = assign_splits(ham, params.split)
    several = splits.groupby("group_id")["image_id"].transform("size") > 1
    shares = several.groupby(splits["split"]).mean()
    assert shares.max() - shares.min() < 0.01


def test_kfold_tests_every_image_once(ham, params):
    tested = []
    for fold in range(5):
        splits = assign_splits(ham, params.split.model_copy(update={"scheme": "kfold", "fold": fold}))
        assert_disjoint(splits)
        assert (splits["fold"][splits["split"] == "test"] == fold).all()
        assert (splits["fold"][splits["split"] == "val"] == (fold + 1) % 5).all()
        share = splits[splits["split"] == "test"].groupby("dx").size() / splits.groupby("dx").size()
        assert (share - 0.2).abs().max() <= 0.005
        tested += splits.loc[splits["split"] == "test", "image_id"].tolist()
    assert sorted(tested) == sorted(ham["image_id"])


def test_another_seed_gives_another_split_and_the_same_seed_the_same(ham, params):
    first, again = (assign_splits(ham, params.split)["split"] for _ in range(2))
    other = assign_splits(ham, params.split.model_copy(update={"seed": 1}))["split"]
    assert (first == again).all()
    assert (first != other).mean() > 0.2


def test_a_split_by_image_would_leak(ham, params):
    splits = assign_splits(ham, params.split)
    assert 0.30 < leak_of_random_split(splits, 0) < 0.40
    assert leak_of_random_split(splits.assign(group_id=splits["image_id"]), 0) == 0


groups = st.lists(st.tuples(st.sampled_from(["nv", "mel", "df"]), st.integers(1, 6)), min_size=12, max_size=60)


@settings(max_examples=60, deadline=None)
@given(groups=groups, seed=st.integers(0, 2**32 - 1))
def test_any_table_is_split_by_whole_groups_near_its_fractions(groups, seed):
    table = table_of(groups)
    fractions = [0.7, 0.15, 0.15]
    part = allocate_groups(table["dx"], table["group_id"], fractions, seed)
    assert table.assign(part=part).groupby("group_id")["part"].nunique().max() == 1
    for dx, rows in table.groupby("dx"):
        largest = rows.groupby("group_id").size().max()
        counts = np.bincount(part[rows.index], minlength=3)
        assert (np.abs(counts - np.array(fractions) * len(rows)) <= largest + 1).all(), (dx, counts)


def test_a_group_of_two_diagnoses_stays_together():
    table = table_of([("nv", 1)] * 20 + [("mel", 1)] * 20)
    table.loc[[0, 20], "group_id"] = "both"
    part = allocate_groups(table["dx"], table["group_id"], [0.7, 0.15, 0.15], 0)
    assert part[0] == part[20]


def test_the_proof_fails_when_a_group_crosses():
    splits = table_of([("nv", 2), ("nv", 1), ("nv", 1)]).assign(split=["train", "val", "val", "test"])
    with pytest.raises(AssertionError, match="1 groups are in two splits"):
        assert_disjoint(splits)
    assert assert_disjoint(splits.assign(split=["train", "train", "val", "test"])) is None


def test_too_few_images_are_said(params):
    with pytest.raises(UserError, match="split is empty"):
        assert_disjoint(assign_splits(table_of([("nv", 1), ("nv", 1)]), params.split))
    with pytest.raises(UserError, match="no image to split"):
        assign_splits(table_of([]), params.split)


def test_summary_counts_and_absent_classes(params):
    splits = assign_splits(table_of([("nv", 1)] * 40 + [("df", 1)]), params.split)
    summary = summarise_splits(splits, params.split)
    assert summary["groups_in_two_splits"] == 0
    assert sum(summary[split]["images"] for split in SPLITS) == 41
    assert summary["classes_missing"] == {"val": ["df"], "test": ["df"]}


def test_the_file_reads_back(tmp_path, params):
    splits = assign_splits(table_of([("nv", 2)] * 20), params.split)
    write_csv(tmp_path / "splits.csv", splits)
    pd.testing.assert_frame_equal(read_splits(tmp_path / "splits.csv"), splits, check_dtype=False)
