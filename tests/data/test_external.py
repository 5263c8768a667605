"""Sets that are only tested on: whole, without what the main set has, and never a reason to train again."""

import shutil

import numpy as np
import pandas as pd
import pytest
import yaml
from helpers.datasets import ROOT, DataProject, ham, ham_rows, save, write_table

from exp_tools.data.duplicates.groups import known_pairs
from exp_tools.data.duplicates.pairs import without_known_images
from exp_tools.data.labels.select import as_task
from exp_tools.errors import UserError


@pytest.fixture
def project(tmp_path, monkeypatch):
    made = DataProject(
        tmp_path / "project",
        monkeypatch.chdir,
        data__source="ham10000",
        data__dir=ham(tmp_path / "ham"),
        prepare__duplicates="known",
    )
    made.run("download", "prepare")
    return made


def labels_in(project: DataProject) -> pd.DataFrame:
    return pd.read_csv(project.folder / "data/external/labels.csv", keep_default_na=False, dtype={"image_id": str})


def test_without_any_set_the_files_are_empty(project):
    project.run("external")
    assert project.metrics("external") == {}
    assert labels_in(project).empty
    assert list(labels_in(project))[:3] == ["set", "image_id", "lesion_id"]
    assert np.load(project.folder / "data/external/images.npy").shape == (0, 32, 32, 3)
    assert (project.folder / "data/external/problems.csv").read_text().startswith("set,file,row,")
    assert [path.name for path in (project.folder / "data/external_raw").iterdir()] == ["made.json"]


def test_images_that_the_main_set_has_are_removed_and_counted(project, tmp_path):
    clinic = tmp_path / "clinic"
    rows = [f"C{n},mel,CL{n}" for n in range(6)] + ["ISIC_0000003,nv,CL9"]
    write_table(clinic / "t.csv", rows, "image_id,dx,lesion_id")
    for n in range(6):
        save(clinic / f"C{n}.png", 200 + n)
    save(clinic / "ISIC_0000003.png", 300)
    shutil.copy(tmp_path / "ham/HAM10000_images_part_1/ISIC_0000002.jpg", clinic / "C4.jpg")
    (clinic / "C4.png").unlink()
    project.change(data__external={"clinic": {"source": "table", "dir": str(clinic)}}).run("external")
    labels = labels_in(project)
    assert labels["image_id"].tolist() == ["C0", "C1", "C2", "C3", "C5"]
    assert set(labels["set"]) == {"clinic"}
    assert np.load(project.folder / "data/external/images.npy").shape == (5, 32, 32, 3)
    metrics = project.metrics("external")["clinic"]
    assert metrics["removed"] == {"same_id": 1, "same_file": 1, "same_lesion": 0}
    assert (metrics["rows_read"], metrics["images"]) == (7, 5)
    assert metrics["problems"] == {}


def test_ids_of_a_clinic_are_its_own_and_those_of_an_archive_are_everybodys(project, tmp_path):
    """The main set has lesions HAM_0000001 to 27 and images of the same numbers without a source of their own."""
    labels = project.labels()
    archived = labels.loc[labels["image_id"].str.startswith("ISIC_"), ["image_id", "lesion_id"]].iloc[0]
    clinic = tmp_path / "clinic"
    rows = ["000,mel,L1", "001,nv,L2", f"{archived['image_id']},nv,L3", f"other,nv,{archived['lesion_id']}"]
    write_table(clinic / "t.csv", [*rows, "again,nv,L3"], "image_id,dx,lesion_id")
    for number, name in enumerate(("000", "001", archived["image_id"], "other", "again")):
        save(clinic / f"{name}.png", 400 + number)
    mine = tmp_path / "mine"
    write_table(mine / "t.csv", ["000,mel,L1", "001,nv,L2", "002,nv,L7"], "image_id,dx,lesion_id")
    for number in range(3):
        save(mine / f"00{number}.png", 500 + number)
    sets = {name: {"source": "table", "dir": str(folder)} for name, folder in (("clinic", clinic), ("mine", mine))}
    project.change(data__external=sets).run("external")
    left = labels_in(project)
    assert left["image_id"].tolist() == ["000", "001", "000", "001", "002"]
    # By id of the archive, by lesion of the archive, and the other photograph of the first one's lesion.
    assert project.metrics("external")["clinic"]["removed"] == {"same_id": 1, "same_file": 0, "same_lesion": 2}
    assert project.metrics("external")["mine"]["removed"] == {"same_id": 0, "same_file": 0, "same_lesion": 0}


def rows_of(source: str, **columns: list[str]) -> pd.DataFrame:
    count = len(next(iter(columns.values())))
    empty = {name: [""] * count for name in ("file", "group")}
    return pd.DataFrame(empty | {"source": [source] * count} | columns)


def test_a_published_set_knows_its_own_ids_and_a_listed_pair_is_one_lesion():
    main = rows_of("ph2", image_id=["IMD001", "ISIC_0027627"], lesion_id=["IMD001", "HAM_0000001"])
    listed = known_pairs("ham10000")
    one, two = listed.loc[0, ["image_id_1", "image_id_2"]]
    main.loc[1, "image_id"] = one
    given = {"image_id": ["IMD001", "IMD002", two], "lesion_id": ["IMD001", "IMD002", "x"]}
    for source, left in (("ph2", ["IMD002"]), ("table", ["IMD001", "IMD002"]), ("isic", ["IMD001", "IMD002"])):
        kept, removed = without_known_images(rows_of(source, **given), main.iloc[:0], main, "known")
        assert kept["image_id"].tolist() == left, source
        assert removed["same_lesion"] == 1


def test_several_sets_stand_behind_each_other(project, tmp_path):
    sets = {}
    for place, name in enumerate(("2020", "zurich")):
        for number in range(2 + place):
            save(tmp_path / name / "mel" / f"a{number}.png", 10 * place + number)
        sets[name] = {"source": "folder", "dir": str(tmp_path / name)}
    project.change(data__external=sets).run("external")
    labels = labels_in(project)
    assert labels["set"].tolist() == ["2020"] * 2 + ["zurich"] * 3
    assert labels["image_id"].tolist() == ["a0", "a1", "a0", "a1", "a2"]
    images = np.load(project.folder / "data/external/images.npy")
    for name, kept in (("2020", images[:2]), ("zurich", images[2:])):
        project.change(data__external={name: sets[name]}).run("external")
        np.testing.assert_array_equal(np.load(project.folder / "data/external/images.npy"), kept)
    assert sorted(path.name for path in (project.folder / "data/external").iterdir()) == [
        "images.npy",
        "labels.csv",
        "problems.csv",
    ]


def test_a_problem_of_an_external_set_stops_with_its_own_report(project, tmp_path):
    save(tmp_path / "clinic" / "mel" / "a.png", 5)
    (tmp_path / "clinic" / "mel" / "b.png").write_bytes(b"")
    project.change(data__external={"clinic": {"source": "folder", "dir": str(tmp_path / "clinic")}})
    assert "data/external/problems.csv" in project.fails("external")
    assert [path.name for path in (project.folder / "data/external").iterdir()] == ["problems.csv"]
    assert (project.folder / "data/external/problems.csv").read_text().splitlines()[1].startswith("clinic,")
    project.change(prepare__on_problem__empty_image="skip").run("external")
    assert project.metrics("external")["clinic"]["images"] == 1


def test_a_set_more_re_runs_neither_preparation_nor_training():
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    for name in ("download", "prepare", "split", "train"):
        assert not {"data", "data.external"} & set(stages[name].get("params", []))
        assert not any(dep.startswith(("data/external", "metrics/external")) for dep in stages[name]["deps"])
    assert "data.external" in stages["external"]["params"]


def test_a_class_does_not_vanish_unsaid(project, tmp_path):
    for number, code in enumerate(("mel", "nv", "nv")):
        save(tmp_path / "clinic" / code / f"{number}.png", number)
    (tmp_path / "clinic/mel/0.png").write_bytes(b"")
    project.change(data__external={"clinic": {"source": "folder", "dir": str(tmp_path / "clinic")}})
    said = project.change(prepare__on_problem__empty_image="skip").fails("external")
    assert "every image of mel (1 rows) was left out (empty_image are skipped" in said
    save(tmp_path / "clinic" / "mel" / "1.png", 9)
    project.run("external")
    assert project.metrics("external")["clinic"]["images"] == 3


def test_a_main_set_is_left_as_it_was(project, tmp_path):
    before = {name: (project.folder / name).stat().st_mtime_ns for name in ("data/prepared/labels.csv", "data/raw")}
    save(tmp_path / "clinic" / "mel" / "a.png", 5)
    project.change(data__external={"clinic": {"source": "folder", "dir": str(tmp_path / "clinic")}}).run("external")
    assert {name: (project.folder / name).stat().st_mtime_ns for name in before} == before


def labels_of(*codes: str) -> pd.DataFrame:
    return pd.DataFrame({"image_id": [f"I{n}" for n in range(len(codes))], "dx": codes})


def test_diagnoses_become_those_that_the_model_knows():
    seven = ["akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"]
    table, left_out = as_task(labels_of("common_nevus", "scc", "atypical_nevus", "mel", "ak"), "diagnosis", seven)
    assert table["dx"].to_dict() == {0: "nv", 2: "nv", 3: "mel", 4: "akiec"}
    assert left_out == {"scc": 1}
    table, left_out = as_task(labels_of("common_nevus", "scc", "mel"), "melanoma", ["non_mel", "mel"])
    assert table["dx"].tolist() == ["non_mel", "non_mel", "mel"]
    assert left_out == {}
    own, _ = as_task(labels_of("common_nevus", "mel"), "diagnosis", ["common_nevus", "atypical_nevus", "mel"])
    assert own["dx"].tolist() == ["common_nevus", "mel"]
    with pytest.raises(UserError, match="the model knows none"):
        as_task(labels_of("scc", "unk"), "diagnosis", seven)


def test_listed_near_duplicates_of_ham10000_are_united_and_removed(tmp_path, monkeypatch):
    listed = known_pairs("ham10000")
    if listed is None or listed.empty:
        pytest.skip("no list of pairs in the package")
    one, two = listed.loc[0, ["image_id_1", "image_id_2"]]
    rows = [*ham_rows(28), f"HAM_A,{one},nv,histo,50,male,back", f"HAM_B,{two},nv,histo,50,male,back"]
    made = DataProject(
        tmp_path / "project",
        monkeypatch.chdir,
        data__source="ham10000",
        data__dir=ham(tmp_path / "ham", rows),
        prepare__duplicates="known",
    )
    made.run("download", "prepare")
    labels = made.labels().set_index("image_id")
    assert labels.loc[one, "group_id"] == labels.loc[two, "group_id"] == "HAM_A"
    assert labels.loc[two, "lesion_id"] == "HAM_B"
    assert made.metrics("data")["groups_with_several_lesions"] == 1
    made.change(prepare__duplicates="off").run("prepare")
    assert made.metrics("data")["groups_with_several_lesions"] == 0
