"""No lesion, no group and no pair of duplicates in two splits, whatever a table looks like; and the proof of it."""

import itertools
import unicodedata
from pathlib import Path

import pandas as pd
import pytest
from helpers.datasets import DataProject, save, write_table
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exp_tools.data.duplicates.groups import group_ids, with_groups
from exp_tools.data.labels.table import typed_labels
from exp_tools.data.labels.validate import complete, one_spelling, tidied
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
        (["007", "7", "07.0", "7.0", "０７"], ["007", "7", "07", "7", "07"]),
        (["L\u200b1", "\ufeffL1", "L\u00ad1", "L1"], ["L1"] * 4),
        (["L\u20131", "L\u20101", "L-1", "\u2014"], ["L-1", "L-1", "L-1", ""]),
        (["L\u00e9", "Le\u0301", "le\u0301"], ["L\u00e9"] * 3),
        (["a.JPG", "a", "a.tiff", "b.c"], ["a", "a", "a", "b.c"]),
    ],
)
def test_an_id_has_one_spelling(written, read):
    assert one_spelling(pd.Series(written)).to_list() == read


def test_a_lesion_without_an_id_stays_called_like_its_image():
    table = complete(pd.DataFrame({"image_id": ["1.0", " b ", "unknown"], "lesion_id": ["1.0", " b ", "unknown"]}))
    assert (table["lesion_id"] == table["image_id"]).all()


@pytest.mark.parametrize(
    ("image_ids", "lesion_ids"),
    [
        (["IMG_a", "b", "c"], ["IMG_a", "img_a", "img_a"]),  # called after its first image, in another case
        (["a.jpg", "b.jpg"], ["a.jpg", "a.jpg"]),  # and tidied like an image's id later
        (["5.0", "6", "7"], ["5.0", "5", "5.0"]),
    ],
)
def test_a_lesion_that_is_called_after_one_of_its_images_is_one(image_ids, lesion_ids):
    table = complete(pd.DataFrame({"image_id": image_ids, "lesion_id": lesion_ids}, dtype=str))
    assert tidied(table, None)["lesion_id"].nunique() == 1


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


@pytest.mark.parametrize("plant", ["another split", "listed again", "listed again, first"])
def test_a_leak_planted_by_hand_into_the_written_splits_is_found(messy, plant):
    messy.run()
    files = [Path("data/splits.csv"), Path("data/prepared/labels.csv"), Path("data/prepared/duplicates.csv")]
    assert set(crossings(*files).values()) == {0}
    head, *rows = files[0].read_text(encoding="utf-8").splitlines()
    place = next(place for place, row in enumerate(rows) if row.startswith("I0,"))  # of lesion 0, with I1
    was = rows[place].split(",")[3]
    leak = rows[place].replace(f",{was},", ",test," if was != "test" else ",train,")
    rows = (
        rows[:place]
        + {
            "another split": [leak],
            "listed again": [rows[place], leak],
            "listed again, first": [leak, rows[place]],
        }[plant]
        + rows[place + 1 :]
    )
    files[0].write_text("\n".join([head, *rows]) + "\n", encoding="utf-8")
    found = crossings(*files)
    assert found["lesions_in_two_splits"] == 1
    assert found["duplicate_pairs_in_two_splits"] == 0


SIBLINGS = ("{}", "{}.0", " {}\u00a0", "{}\u200b", "{}\u2003", "{}.jpg", "{}.")
"""Ways to write the same whole number as an id."""


def siblings_rows(scheme: str) -> list[str]:
    """Two to four images of each of 120 lesions, in every spelling; groups over lesions and finer; a given test set."""
    rows = []
    for lesion in range(120):
        for copy in range(1 if lesion % 3 == 0 else 2 + lesion % 3):
            name = f"{lesion}" if lesion % 2 else f"S\u00e9rie{chr(0x2013)}{lesion}x"
            written = SIBLINGS[(lesion + copy) % len(SIBLINGS)].format(name) if lesion % 2 else name
            if not lesion % 2:
                written = (
                    written,
                    unicodedata.normalize("NFD", written),
                    written.upper(),
                    written.replace("\u2013", "-"),
                )[copy]
            group = ("", f"P{lesion // 10}", f"p{lesion // 10} ", f"P{lesion}-{copy}", "N/A")[(lesion // 5 + copy) % 5]
            split = (
                ("test" if (lesion + copy) % 7 == 0 else "val" if lesion % 11 == 1 else "") if scheme in GIVEN else ""
            )
            rows.append(f"I{len(rows)},{written},{group},{('nv', 'mel', 'bcc')[lesion % 3]},{split},{lesion}")
    return rows


GIVEN = ("official", "column", "auto")


@pytest.mark.parametrize("scheme", ["holdout", "kfold", "paper", "official", "column", "auto"])
def test_siblings_of_every_kind_stay_together_under_every_scheme(tmp_path, monkeypatch, scheme):
    """By the numbers with which the rows were made, which the pipeline never sees, no lesion is in two splits."""
    rows = siblings_rows(scheme)
    for row in rows:
        save(tmp_path / "set" / f"{row.split(',')[0]}.png", int(row.split(",")[0][1:]))
    shown = [row.rpartition(",")[0] for row in rows]
    write_table(tmp_path / "set" / "labels.csv", shown, "image_id,lesion_id,group,dx,split")
    project = DataProject(tmp_path / "project", monkeypatch.chdir, data__source="table", data__dir=tmp_path / "set")
    project.change(split__scheme=scheme).run()
    split = project.splits().set_index("image_id")["split"]
    found: dict[str, set[str]] = {}
    patients: dict[str, set[str]] = {}
    for row in rows:
        image_id, _, group, _, _, lesion = row.split(",")
        used = {split[image_id]} - {UNUSED}
        found.setdefault(lesion, set()).update(used)
        if group not in ("", "N/A"):
            patients.setdefault(group.strip().upper(), set()).update(used)
    assert [lesion for lesion, splits in found.items() if len(splits) > 1] == []
    assert [patient for patient, splits in patients.items() if len(splits) > 1] == []
    assert project.metrics("data")["lesions"] == 120
    assert project.metrics("split")["lesions_in_two_splits"] == 0


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
