"""Splits: no lesion in two, classes in proportion, the same for the same seed."""

import numpy as np
import pandas as pd
import pytest
from helpers.datasets import DataProject, save, write_table
from hypothesis import given, settings
from hypothesis import strategies as st

from exp_tools.data.labels.attributes import attribute_groups
from exp_tools.data.labels.table import read_splits
from exp_tools.data.sources.tables import read_text_table
from exp_tools.data.splits import (
    SPLITS,
    allocate_groups,
    assert_disjoint,
    assign_splits,
    ignored_tests,
    leak_of_random_split,
    resolve_scheme,
    summarise_splits,
)
from exp_tools.errors import UserError
from exp_tools.io import write_csv


@pytest.fixture
def ham(real_data) -> pd.DataFrame:
    table = read_text_table(real_data / "HAM10000_metadata.csv").reset_index(drop=True)
    return table.assign(group_id=table["lesion_id"], source="ham10000", split="")[
        ["image_id", "lesion_id", "group_id", "dx", "sex", "source", "split"]
    ]


def table_of(groups: list[tuple[str, int]]) -> pd.DataFrame:
    """A label table from (diagnosis, images) a group."""
    rows = [(f"G{number}", dx) for number, (dx, size) in enumerate(groups) for _ in range(size)]
    return pd.DataFrame(
        {"image_id": [f"I{n}" for n in range(len(rows))], "group_id": [g for g, _ in rows], "dx": [d for _, d in rows]}
    ).assign(sex="unknown", source="x", split="")


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
    summary = summarise_splits(splits, scheme(params, "holdout"))
    assert sum(summary[split]["images"] for split in SPLITS) == 41
    reason = {"df": "its 1 group(s) are fewer than 3 parts"}
    assert summary["classes_missing"] == {"val": reason, "test": reason}


def test_the_file_reads_back(tmp_path, params):
    splits = assign_splits(table_of([("nv", 2)] * 20), params.split)
    write_csv(tmp_path / "splits.csv", splits)
    pd.testing.assert_frame_equal(read_splits(tmp_path / "splits.csv"), splits, check_dtype=False)


def scheme(params, name: str, **changes):
    return params.split.model_copy(update={"scheme": name, **changes})


def test_the_papers_test_set_has_its_published_classes(ham, params):
    splits = assign_splits(ham, scheme(params, "paper"))
    assert_disjoint(splits)
    test = splits[splits["split"] == "test"]
    published = {"akiec": 23, "bcc": 26, "bkl": 66, "df": 6, "mel": 34, "nv": 663, "vasc": 10}
    assert test["dx"].value_counts().to_dict() == published
    assert len(test) == 828
    assert ham.groupby("lesion_id")["image_id"].transform("size")[test.index].eq(1).all()
    other = assign_splits(ham, scheme(params, "paper", seed=1))
    assert (other["split"] == "test").sum() == 828
    assert ((other["split"] == "test") != (splits["split"] == "test")).any()
    rest = splits.loc[splits["split"] != "test", "split"].value_counts(normalize=True)
    assert abs(rest["train"] - 0.7 / 0.85) < 0.005


def test_a_split_by_image_tears_lesions_apart_and_says_by_how_much(ham, params):
    by_image = params.split.model_copy(update={"scheme": "image"})
    splits = assign_splits(ham, by_image)
    assert splits["split"].value_counts(normalize=True).round(2).to_dict() == {"train": 0.7, "val": 0.15, "test": 0.15}
    assert_disjoint(splits, "image")
    with pytest.raises(AssertionError, match="groups are in two splits"):
        assert_disjoint(splits)
    summary = summarise_splits(splits, by_image)
    assert summary["leak"] == pytest.approx(summary["leak_of_a_split_by_image"], abs=0.03)
    assert 0.3 < summary["leak"] < 0.45
    assert summary["largest_share_gap_points"] < 0.5
    assert splits["group_id"].equals(ham["group_id"])  # intervals stay those of lesions


def test_the_stage_warns_of_a_split_by_image_and_its_proof_tells_the_leak(tmp_path, monkeypatch, capsys):
    rows = [f"a{n},{('mel', 'nv')[n // 3 % 2]},L{n // 3}" for n in range(120)]
    for n in range(120):
        save(tmp_path / "set" / f"a{n}.png", n)
    write_table(tmp_path / "set" / "t.csv", rows, "image_id,dx,lesion_id")
    folder = tmp_path / "project"
    made = DataProject(folder, monkeypatch.chdir, data__source="table", data__dir=tmp_path / "set")
    made.change(split__scheme="image").run()
    assert "LEAKY, split by image" in capsys.readouterr().out
    found = made.metrics("split")
    splits = made.splits().merge(made.labels()[["image_id", "lesion_id"]], on="image_id")
    crossing = (splits.groupby("lesion_id")["split"].nunique() > 1).sum()
    assert found["lesions_in_two_splits"] == crossing > 10
    seen = set(splits.loc[splits["split"] == "train", "lesion_id"])
    assert found["leak"] == pytest.approx(splits.loc[splits["split"] == "test", "lesion_id"].isin(seen).mean())
    made.change(split__scheme="holdout").run("split")
    assert "leak" not in made.metrics("split")


def test_a_given_test_set_is_kept_and_the_rest_is_shared_out(ham, params):
    given = ham.assign(split=np.where(ham["lesion_id"].str.endswith("7"), "test", ""))
    splits = assign_splits(given, scheme(params, "official"))
    assert_disjoint(splits)
    assert ((splits["split"] == "test") == (given["split"] == "test")).all()
    rest = splits[splits["split"] != "test"]
    share = rest.groupby(["dx", "split"]).size().unstack()
    gap = (share["val"] / share.sum(axis=1) - 0.15 / 0.85).abs().max()
    assert gap <= 0.005
    summary = summarise_splits(splits, scheme(params, "official"))
    assert summary["largest_share_gap_points"] <= 0.5
    assert summary["largest_share_gap_points"] == pytest.approx(100 * gap)


def test_a_given_test_set_is_kept_without_asking(ham, params):
    assert params.split.scheme == "auto"
    plain = resolve_scheme(ham, params.split)
    assert (plain.scheme, ignored_tests(ham, plain)) == ("holdout", 0)
    given = ham.assign(split=np.where(ham["lesion_id"].str.endswith("7"), "test", ""))
    chosen = resolve_scheme(given, params.split)
    assert (chosen.scheme, ignored_tests(given, chosen)) == ("official", 0)
    asked = params.split.model_copy(update={"scheme": "holdout"})
    assert resolve_scheme(given, asked) is asked
    assert ignored_tests(given, asked) == (given["split"] == "test").sum() > 0


def test_training_images_of_a_tested_lesion_are_used_for_nothing(params):
    table = table_of([("nv", 2)] * 10 + [("mel", 2)] * 10)
    table["split"] = ["test", "train", *["test"] * 2, *["train"] * 36]
    splits = assign_splits(table, scheme(params, "column"))
    assert_disjoint(splits)
    assert splits["split"][:4].tolist() == ["test", "unused", "test", "test"]
    assert set(splits["split"][4:]) == {"train", "val"}
    assert summarise_splits(splits, scheme(params, "column"))["unused_images_of_test_groups"] == 1


def test_a_given_validation_set_is_kept_too(params):
    table = table_of([("nv", 1)] * 4 + [("nv", 2)])
    table["split"] = ["test", "val", "train", "", "train", "val"]
    splits = assign_splits(table, scheme(params, "column"))
    assert splits["split"].tolist() == ["test", "val", "train", "train", "train", "train"]


def test_a_scheme_that_needs_a_given_test_set_says_so(ham, params):
    for name in ("official", "column"):
        with pytest.raises(UserError, match=f"split.scheme {name} needs images that are marked as test"):
            assign_splits(ham, scheme(params, name))
    with pytest.raises(UserError, match="nothing is left to train on"):
        assign_splits(table_of([("nv", 2)]).assign(split=["test", "train"]), scheme(params, "column"))


def test_stratified_by_source_and_sex_as_well(ham, params):
    mixed = ham.assign(source=np.where(ham["lesion_id"].str[-1].isin(list("012")), "a", "b"))
    splits = assign_splits(mixed, scheme(params, "holdout", stratify=["dx", "source", "sex"]))
    assert_disjoint(splits)
    for columns in (["source"], ["sex"], ["source", "sex"]):
        keys = mixed[columns].agg("-".join, axis=1)
        large = keys.map(keys.value_counts()) > 1000
        share = pd.crosstab(keys[large], splits["split"][large], normalize="index")
        assert (share - [0.15, 0.7, 0.15]).abs().to_numpy().max() < 0.01


def test_stratified_by_further_columns_of_the_users_table(ham, params):
    hospital = np.where(ham["lesion_id"].str[-1].isin(list("012")), "A", "B")
    tenths = ham.groupby("lesion_id").ngroup() % 50
    more = ham.assign(extra_hospital=hospital, extra_thickness=(tenths / 10).astype(str).replace("4.9", "unknown"))
    splits = assign_splits(more, scheme(params, "holdout", stratify=["dx", "hospital", "thickness"]))
    assert_disjoint(splits)
    bands = attribute_groups(more["extra_thickness"]).astype(str)
    assert set(bands) == {"0 to 1.2", "1.3 to 2.4", "2.5 to 3.6", "3.7 to 4.8", "unknown"}
    for keys in (more["extra_hospital"], bands, bands + more["extra_hospital"]):
        large = keys.map(keys.value_counts()) > 500
        share = pd.crosstab(keys[large], splits["split"][large], normalize="index")
        assert (share - [0.15, 0.7, 0.15]).abs().to_numpy().max() < 0.01


def test_what_to_stratify_by_must_be_in_the_labels(ham, params):
    more = ham.assign(extra_hospital="A", extra_skin_tone="1")
    said = (
        r"split\.stratify names 'hospitl'; the label table has dx, source, sex, hospital, skin_tone \(did you mean 'h"
    )
    for name in ("holdout", "kfold", "paper"):
        with pytest.raises(UserError, match=said):
            assign_splits(more, scheme(params, name, stratify=["dx", "hospitl"]))


@settings(max_examples=60, deadline=None)
@given(groups=groups, seed=st.integers(0, 2**32 - 1))
def test_a_class_of_three_lesions_or_more_is_in_every_split(groups, seed):
    from exp_tools.data.splits import cover_classes

    table = table_of(groups)
    part = allocate_groups(table["dx"], table["group_id"], [0.7, 0.15, 0.15], seed)
    part = cover_classes(part, table["dx"], table["group_id"], 3)
    assert table.assign(part=part).groupby("group_id")["part"].nunique().max() == 1
    for _, rows in table.assign(part=part).groupby("dx"):
        if rows["group_id"].nunique() >= 3:
            assert rows["part"].nunique() == 3


def test_a_table_of_one_image_a_class_says_why_classes_are_missing(params):
    splits = assign_splits(table_of([("nv", 1)] * 30 + [("mel", 1), ("df", 1), ("df", 1)]), params.split)
    missing = summarise_splits(splits, scheme(params, "holdout"))["classes_missing"]
    assert all("fewer than 3 parts" in reason for of in missing.values() for reason in of.values())
    assert {dx for of in missing.values() for dx in of} == {"mel", "df"}


def test_a_column_of_the_users_table_reaches_the_split_under_its_plain_name(tmp_path, monkeypatch):
    rows = [f"I{n},{('nv', 'mel')[n % 2]},{('North Wing', 'South')[n // 2 % 2]}" for n in range(32)]
    write_table(tmp_path / "mine/t.csv", rows, "image_id,dx,Hospital Wing")
    for number in range(32):
        save(tmp_path / f"mine/I{number}.png", number)
    project = DataProject(
        tmp_path / "project",
        monkeypatch.chdir,
        data__source="table",
        data__dir=tmp_path / "mine",
        split__stratify=["dx", "hospital_wing"],
        split__fractions=[0.5, 0.25, 0.25],
    )
    project.run()
    counts = pd.crosstab(project.labels()["extra_hospital_wing"], project.splits()["split"])
    assert (counts[["train", "val", "test"]].to_numpy() == [8, 4, 4]).all()
    said = project.change(split__stratify=["dx", "wing"]).fails("split")
    assert "split.stratify names 'wing'; the label table has dx, source, sex, hospital_wing" in said
