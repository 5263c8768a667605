"""No lesion, no group and no pair of duplicates in two splits, whatever a table looks like; and the proof of it."""

import itertools
from pathlib import Path

import pandas as pd
import pytest
from helpers.datasets import DataProject, save, write_table
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exp_tools.data.duplicates.groups import group_ids, with_groups
from exp_tools.data.labels.table import typed_labels
from exp_tools.data.labels.validate import complete, one_spelling
from exp_tools.data.split_proof import crossings
from exp_tools.data.splits import UNUSED, assign_splits

LESIONS = 100
SINGLE = 40
"""Further lesions, of one image each and without a group: the scheme `paper` makes its test set of such."""
HEADER = "image_id,lesion_id,group,dx"


def messy_rows() -> list[tuple[str, str, str, str]]:
    """Two images of each of 100 lesions, with everything at once that has parted lesions."""
    rows = []
    for lesion in range(LESIONS):
        for copy in range(2):
            written = (f"{lesion}.0", f" {lesion}", f"{lesion}")[lesion % 3] if copy else f"{lesion}"
            group = {
                0: ("", f"P{lesion}")[copy],  # filled for some rows
                1: f"P{lesion}-{copy}",  # finer than the lesion
                2: f"P{lesion // 8}" + " " * copy,  # a trailing blank; one patient, two lesions
                3: ("NA", "unknown")[copy],  # no group at all
            }[lesion % 4]
            rows.append((f"I{2 * lesion + copy}", written, group, ("nv", "mel")[lesion % 2]))
    return rows + [(f"I{2 * lesion}", f"{lesion}", "", "nv") for lesion in range(LESIONS, LESIONS + SINGLE)]


def stays_together(rows: list[tuple[str, str, str, str]]) -> set[frozenset[str]]:
    """Pairs of images that must share a split, worked out from the way the rows were made."""
    pairs = set()
    for (one, _, group_1, _), (two, _, group_2, _) in itertools.combinations(rows, 2):
        same_lesion = int(one[1:]) // 2 == int(two[1:]) // 2
        same_group = group_1.strip() == group_2.strip() and group_1.strip() not in ("", "NA", "unknown")
        if same_lesion or same_group:
            pairs.add(frozenset((one, two)))
    return pairs


@pytest.fixture
def messy(tmp_path, monkeypatch) -> DataProject:
    for image_id, *_ in messy_rows():
        save(tmp_path / "set" / f"{image_id}.png", int(image_id[1:]))
    write_table(tmp_path / "set" / "labels.csv", [",".join(row) for row in messy_rows()], HEADER)
    return DataProject(tmp_path / "project", monkeypatch.chdir, data__source="table", data__dir=tmp_path / "set")


@pytest.mark.parametrize("scheme", ["holdout", "kfold", "paper"])
def test_no_lesion_crosses_whatever_the_table_looks_like(messy, scheme):
    messy.change(split__scheme=scheme).run()
    split = messy.splits().set_index("image_id")["split"]
    crossing = [pair for pair in stays_together(messy_rows()) if len(set(split[list(pair)]) - {UNUSED}) > 1]
    assert crossing == []
    assert messy.metrics("data")["lesions"] == LESIONS + SINGLE
    summary = messy.metrics("split")
    assert summary["lesions_in_two_splits"] == summary["groups_in_two_splits"] == 0
    assert summary["duplicate_pairs_in_two_splits"] == 0


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (["12", "12.0", " 12 ", "12.", "12.00"], ["12"] * 5),
        (["1.5", "012", "12.01", "-1.0"], ["1.5", "012", "12.01", "-1.0"]),
        (["HAM_1", "HAM_1", "ham_1", "Ham_1"], ["HAM_1"] * 4),
        (["a  b", "a b", "a\u00a0b", "ａ b"], ["a b"] * 4),
        (["NA", "nan", "None", "unknown", "NULL", "", " "], [""] * 7),
        (["L1", "L2", "L1 "], ["L1", "L2", "L1"]),
    ],
)
def test_an_id_has_one_spelling(written, read):
    assert one_spelling(pd.Series(written)).to_list() == read


def test_a_lesion_without_an_id_stays_called_like_its_image():
    table = complete(pd.DataFrame({"image_id": ["1.0", " b ", "unknown"], "lesion_id": ["1.0", " b ", "unknown"]}))
    assert (table["lesion_id"] == table["image_id"]).all()


def test_a_group_and_a_lesion_of_one_name_have_nothing_to_do_with_each_other():
    no_pairs = pd.DataFrame(columns=["image_id_1", "image_id_2"])
    groups = group_ids(["5", "6", "7"], ["a", "b", "c"], no_pairs, ["", "5", "5"])
    assert list(groups) == ["5", "6", "6"]


def test_patients_lesions_and_pairs_chain():
    pairs = pd.DataFrame({"image_id_1": ["b"], "image_id_2": ["c"], "accepted": [True]})
    assert list(group_ids(list("KLMN"), list("abcd"), pairs, ["P", "P", "", ""])) == ["K", "K", "K", "N"]


def written(folder: Path, splits: list[str], lesions: list[str], groups: list[str], pairs: list[tuple[str, str, bool]]):
    """The three files that the proof reads, for images 0, 1, 2, …"""
    images = [str(number) for number in range(len(splits))]
    tables = {
        "splits": pd.DataFrame({"image_id": images, "split": splits}),
        "labels": pd.DataFrame({"image_id": images[::-1], "lesion_id": lesions[::-1], "group": groups[::-1]}),
        "duplicates": pd.DataFrame(pairs, columns=["image_id_1", "image_id_2", "accepted"]),
    }
    for name, table in tables.items():
        table.to_csv(folder / f"{name}.csv", index=False)
    return [folder / f"{name}.csv" for name in tables]


@pytest.mark.parametrize(
    ("lesions", "groups", "pairs", "found"),
    [
        ("AABC", ["", "", "", ""], [], (0, 0, 0)),
        ("ABBA", ["", "", "", ""], [], (1, 0, 0)),  # A is in train and unused, B in train and val
        ("ABCD", ["P", "", "P", ""], [], (0, 1, 0)),
        ("ABCD", ["", "Q", "", "Q"], [], (0, 0, 0)),
        ("ABCD", ["", "", "", ""], [("1", "2", True), ("0", "2", False), ("2", "3", True)], (0, 0, 1)),
        ("ABAB", ["P", "P", "P", "P"], [("0", "2", True), ("1", "2", True)], (1, 1, 2)),
    ],
)
def test_the_proof_finds_each_kind_of_crossing(tmp_path, lesions, groups, pairs, found):
    files = written(tmp_path, ["train", "train", "val", "unused"], list(lesions), groups, pairs)
    assert tuple(crossings(*files).values()) == found


def test_the_split_stage_keeps_no_file_that_the_proof_refutes(messy, monkeypatch):
    messy.run("download", "prepare")
    monkeypatch.setattr(
        "stages.split.assign_splits",
        lambda labels, params: assign_splits(labels.assign(group_id=labels["image_id"]), params),
    )
    with pytest.raises(AssertionError, match="lesions_in_two_splits"):
        messy.run("split")
    assert not (messy.folder / "data/splits.csv").exists()


SPELLINGS = st.sampled_from(["{}", "{}.0", " {}", "{} "])
IMAGE = st.tuples(st.integers(0, 30), SPELLINGS, st.one_of(st.none(), st.integers(0, 12)), SPELLINGS)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(IMAGE, min_size=12, max_size=80), st.data())
def test_nothing_ever_crosses(tmp_path_factory, params, images, data):
    """Any lesions, groups and pairs, in any spelling: by the files written, nothing is in two splits."""
    table = pd.DataFrame(
        {
            "image_id": [f"I{number}" for number in range(len(images))],
            "lesion_id": [spelling.format(lesion) for lesion, spelling, _, _ in images],
            "group": ["" if group is None else spelling.format(group) for _, _, group, spelling in images],
            "dx": [("nv", "mel")[lesion % 2] for lesion, _, _, _ in images],
        }
    )
    place = st.integers(0, len(images) - 1)
    ends = data.draw(st.lists(st.tuples(place, place, st.booleans()), max_size=10))
    pairs = [(f"I{one}", f"I{two}", accepted) for one, two, accepted in ends]
    listed = pd.DataFrame(pairs, columns=["image_id_1", "image_id_2", "accepted"]).astype({"accepted": bool})
    labels = with_groups(typed_labels(complete(table)), listed)
    folder = tmp_path_factory.mktemp("proof")
    labels.to_csv(folder / "labels.csv", index=False)
    listed.to_csv(folder / "duplicates.csv", index=False)
    assign_splits(labels, params.split).to_csv(folder / "splits.csv", index=False)
    found = crossings(*(folder / f"{name}.csv" for name in ("splits", "labels", "duplicates")))
    assert set(found.values()) == {0}
    assert labels["lesion_id"].nunique() == len({lesion for lesion, *_ in images})
