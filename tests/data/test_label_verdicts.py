"""verdicts/labels.csv: what a person says of a label holds for the lesion, is listed, and moves no other image."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers.datasets import ROOT, DataProject, ham, ham_rows, save, write_table

from exp_tools.cli import main as cli
from exp_tools.data.label_verdicts import COLUMNS, as_judged, judge_labels, read_label_verdicts
from exp_tools.data.splits import assign_splits, summarise_splits
from exp_tools.errors import UserError
from exp_tools.project import LABEL_VERDICTS

HEADER = "image_id,verdict,dx,note"


def written(folder: Path, *rows: str) -> Path:
    return write_table(folder / LABEL_VERDICTS, list(rows), HEADER)


def test_the_file_in_git_has_the_header_only():
    assert (ROOT / LABEL_VERDICTS).read_text(encoding="utf-8") == HEADER + "\n"
    assert list(read_label_verdicts(ROOT / LABEL_VERDICTS)) == COLUMNS


def test_verdicts_are_read(tmp_path):
    path = written(tmp_path, "a, Relabel ,mel,", 'b,keep,nv,"seen by two, sure"', "c,DROP,,")
    assert read_label_verdicts(path)[["image_id", "verdict", "dx"]].to_numpy().tolist() == [
        ["a", "relabel", "mel"],
        ["b", "keep", "nv"],
        ["c", "drop", ""],
    ]
    without_notes = write_table(tmp_path / "short.csv", ["a,keep,"], "image_id,verdict,dx")
    assert read_label_verdicts(without_notes)["note"].tolist() == [""]
    assert read_label_verdicts(tmp_path / "none.csv").empty


def test_bad_rows_are_one_error_that_names_each(tmp_path):
    rows = [",drop,,", "a,wrong,,", "b,relabel,,", "c,,mel,", "d,keep,,", "d,drop,,", "e,relabel,mel,", "e,relabel,nv,"]
    with pytest.raises(UserError) as raised:
        read_label_verdicts(written(tmp_path, *rows))
    for said in (
        f"{LABEL_VERDICTS.name}: line 2 names no image",
        "line 3: verdict is 'wrong', it must be relabel, drop or keep",
        "line 4: relabel b, but dx is empty: write the new diagnosis there",
        "line 5: verdict is ''",
        "line 7 says drop of d, line 6 says keep",
        "line 9 says relabel nv of e, line 8 says relabel mel",
        "Correct these rows, or take them out",
    ):
        assert said in str(raised.value)
    with pytest.raises(UserError, match="has no column verdict"):
        read_label_verdicts(write_table(tmp_path / "v.csv", ["a,mel"], "image_id,dx"))


LESIONS = pd.DataFrame(
    [("a1", "A", "nv"), ("a2", "A", "nv"), ("b1", "B", "nv"), ("c1", "C", "mel"), ("d1", "D", "mel")],
    columns=["image_id", "lesion_id", "dx"],
)


def judged(folder: Path, *rows: str):
    path = written(folder, *rows)
    return judge_labels(LESIONS, read_label_verdicts(path), path)


def test_a_verdict_holds_for_all_images_of_its_lesion(tmp_path):
    found = judged(tmp_path, "a2,relabel,MEL,", "c1,drop,,", "b1,keep,mel,", "elsewhere,drop,,", "a1,relabel,mel,")
    assert found.labels["dx"].tolist() == ["mel", "mel", "nv", "mel", "mel"]
    assert found.labels["dx_original"].tolist() == LESIONS["dx"].tolist()
    assert found.labels["verdict"].tolist() == ["relabel", "relabel", "", "drop", ""]
    assert found.unknown == {5: "elsewhere"}
    assert str(found) == "2 images of 1 lesions relabelled, 1 images of 1 lesions dropped"
    assert [(change.row, change.place, change.value, change.action) for change in found.changes] == [
        (2, 0, "nv", "relabelled"),
        (2, 1, "nv", "relabelled"),
        (3, 3, "mel", "dropped"),
    ]
    assert found.changes[0].rule == "a1: nv relabelled mel, as a2 of the same lesion"
    pd.testing.assert_frame_equal(as_judged(found.labels)[list(LESIONS)], LESIONS)


@pytest.mark.parametrize("rows", [(), ("a1,keep,,",), ("a1,relabel,nv,",), ("elsewhere,drop,,",)])
def test_what_changes_nothing_adds_no_column(tmp_path, rows):
    found = judged(tmp_path, *rows)
    pd.testing.assert_frame_equal(found.labels, LESIONS)
    assert (found.changes, str(found)) == ([], "")


def test_rows_that_leave_two_diagnoses_or_name_none_are_refused_by_line(tmp_path):
    with pytest.raises(UserError) as raised:
        judged(tmp_path, "a1,relabel,mel,", "a2,keep,,", "b1,relabel,mell,")
    for said in (
        "line 3 says keep of a2, line 2 says relabel mel of a1: both show lesion A, which has one diagnosis",
        "line 4: 'mell' is no diagnosis of this set, which has mel, nv (did you mean 'mel'?)",
    ):
        assert said in str(raised.value)
    with pytest.raises(UserError, match="'non_mel' is no diagnosis of this set, which has mel, nv; write the one that"):
        judged(tmp_path, "b1,relabel,non_mel,")
    with pytest.raises(UserError, match="no image of mel is left after line 2, 4, and the class goes with them"):
        judged(tmp_path, "c1,relabel,nv,", "a1,keep,,", "d1,drop,,")


@pytest.mark.parametrize("scheme", ["holdout", "kfold", "paper", "column"])
def test_many_verdicts_move_no_image_under_any_scheme(scheme, params):
    generator = np.random.default_rng(3)
    lesions = np.repeat(np.arange(200), generator.integers(1, 4, 200))
    names = [f"L{number:03}" for number in lesions]
    dx = np.array(["bkl", "mel", "nv"])[generator.choice(3, 200, p=[0.2, 0.2, 0.6])[lesions]]
    given = np.where(lesions < 30, "test", "")
    labels = pd.DataFrame(
        {"image_id": [f"I{n:03}" for n in range(len(names))], "lesion_id": names, "group_id": names, "dx": dx}
    ).assign(split=given)
    chosen = params.split.model_copy(update={"scheme": scheme})
    before = assign_splits(labels, chosen)
    answers = np.array(["", "relabel", "drop"])[generator.choice(3, 200, p=[0.6, 0.3, 0.1])[lesions]]
    new = np.where(answers == "relabel", "mel", dx)
    after = assign_splits(labels.assign(dx=new, dx_original=dx, verdict=answers), chosen)
    dropped = answers == "drop"
    assert after.loc[~dropped, "split"].tolist() == before.loc[~dropped, "split"].tolist()
    assert after.loc[dropped, "dropped_from"].tolist() == before.loc[dropped, "split"].tolist()
    assert set(after.loc[dropped, "split"]) == {"unused"}
    assert after["dx"].tolist() == new.tolist()
    summary = summarise_splits(after, chosen)
    assert sum(summary["dropped"].values()) + (before.loc[dropped, "split"] == "unused").sum() == dropped.sum()
    assert sum(summary[split]["images"] for split in ("train", "val", "test")) == (after["split"] != "unused").sum()
    unused = (before["split"] == "unused") & ~dropped
    assert summary["unused_images_of_test_groups"] == unused.sum()


@pytest.fixture
def project(tmp_path, monkeypatch):
    return DataProject(
        tmp_path / "project",
        monkeypatch.chdir,
        data__source="ham10000",
        data__dir=ham(tmp_path / "ham", ham_rows(84)),
        prepare__on_problem__unexpected_count="note",
    )


def outputs(project: DataProject) -> dict[str, bytes]:
    names = [name for name in project.written() if not name.startswith("verdicts")]
    return {name: (project.folder / name).read_bytes() for name in names}


@pytest.mark.parametrize(
    "split", [{}, pytest.param({"split__scheme": "kfold"}, marks=pytest.mark.sweep)], ids=["holdout", "kfold"]
)
def test_prepare_applies_them_and_no_other_image_moves(project, capsys, split):
    project.change(**split)
    project.run()
    before, splits, clean = project.labels(), project.splits(), outputs(project)
    lesion = before[before["dx"] == "nv"]["lesion_id"].iloc[0]
    first, second = before.loc[before["lesion_id"] == lesion, "image_id"]
    test = splits.merge(before[["image_id", "lesion_id"]], on="image_id").query("split == 'test'")
    gone = test.loc[test["lesion_id"] != lesion].groupby("lesion_id")["image_id"].apply(list).iloc[0]
    written(project.folder, f"{first},relabel,mel,", f"{gone[0]},drop,,", "elsewhere,drop,,")
    capsys.readouterr()
    project.run("prepare", "split")
    said = capsys.readouterr()
    assert f"2 images of 1 lesions relabelled, {len(gone)} images of 1 lesions dropped" in said.out
    assert "this set has no image elsewhere (line 4); these verdicts change nothing" in said.err
    assert f"dropped images, which are used for nothing: 0 of train, 0 of val, {len(gone)} of test" in said.out

    labels = project.labels().set_index("image_id")
    assert labels.loc[[first, second], "dx"].tolist() == ["mel", "mel"]
    assert labels.loc[[first, second], "dx_original"].tolist() == ["nv", "nv"]
    assert labels["dx_original"].tolist() == before["dx"].tolist()
    changed = labels.index[labels["verdict"] != ""]
    assert set(changed) == {first, second, *gone}
    rest = ~labels.index.isin(changed)
    assert labels.loc[rest, "dx"].tolist() == before.set_index("image_id").loc[labels.index[rest], "dx"].tolist()

    moved = project.splits().set_index("image_id")
    assert moved.loc[~moved.index.isin(gone), "split"].tolist() == [
        split for image, split in zip(splits["image_id"], splits["split"], strict=True) if image not in gone
    ]
    assert (moved.loc[gone, "split"].unique().tolist(), moved.loc[gone, "dropped_from"].unique().tolist()) == (
        ["unused"],
        ["test"],
    )
    assert moved.loc[first, "dx"] == "mel"
    metrics = project.metrics("split")
    assert metrics["dropped"] == {"train": 0, "val": 0, "test": len(gone)}
    assert (metrics["lesions_in_two_splits"], metrics["unused_images_of_test_groups"]) == (
        0,
        json.loads(clean["metrics/split.json"])["unused_images_of_test_groups"],
    )
    assert project.metrics("data")["problems"]["label_verdict"] == {"relabelled": 2, "dropped": len(gone)}
    listed = pd.read_csv(project.folder / "data/prepared/problems.csv").query("kind == 'label_verdict'")
    assert listed["row"].tolist() == [2, 2] + [3] * len(gone)
    assert set(listed["file"]) == {LABEL_VERDICTS.as_posix()}
    assert outputs(project)["data/prepared/images.npy"] == clean["data/prepared/images.npy"]

    written(project.folder, f"{first},keep,mel,")
    project.run("prepare", "split")
    assert outputs(project) == clean


def test_prepare_stops_at_a_fault_and_the_check_says_it_before(project, capsys):
    project.run("download", "prepare")
    image = project.labels()["image_id"].iloc[0]
    written(project.folder, f"{image},relabel,melanoma,")
    assert "line 2: 'melanoma' is no diagnosis of this set" in project.fails("prepare")
    capsys.readouterr()
    assert cli.main(["data", "check"]) == 3
    assert "line 2: 'melanoma' is no diagnosis of this set" in capsys.readouterr().out
    written(project.folder, f"{image},drop,,", "elsewhere,keep,,")
    assert cli.main(["data", "check"]) == 0
    assert "2 verdicts on labels: 2 images of 1 lesions dropped; verdicts/labels.csv: this set has no image" in (
        capsys.readouterr().out
    )
    (project.folder / LABEL_VERDICTS).unlink()
    assert cli.main(["data", "check"]) == 0
    (project.folder / "dvc.yaml").write_text(f"deps: [{LABEL_VERDICTS.as_posix()}]\n")
    assert cli.main(["data", "check"]) == 3
    assert "verdicts/labels.csv is not there, and DVC stops at that: git checkout -- " in capsys.readouterr().out


def test_external_sets_keep_the_labels_that_they_come_with(project, tmp_path):
    write_table(tmp_path / "other" / "labels.csv", ["X0,nv", "X1,mel"], "image_id,dx")
    for number in (0, 1):
        save(tmp_path / "other" / f"X{number}.png", 200 + number)
    project.change(data__external={"other": {"source": "table", "dir": str(tmp_path / "other")}})
    written(project.folder, "X0,relabel,mel,")
    project.run("download", "prepare", "external")
    external = pd.read_csv(project.folder / "data/external/labels.csv")
    assert external["dx"].tolist() == ["nv", "mel"]
    assert "dx_original" not in external
