"""Every source in every layout that it is found in, from a folder to labels, images and splits."""

import shutil
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers.datasets import CODES, DataProject, ham, ham_rows, save, write_table
from openpyxl import Workbook

from exp_tools.data.acquire.link import provide
from exp_tools.data.labels.validate import check_counts, check_labels
from exp_tools.data.sources.registry import SourceOptions, read_source, spec_of
from exp_tools.errors import UserError
from exp_tools.params import DataParams

SOURCES = DataParams.model_fields["source"].annotation.__args__
ONE_HOT = "image,MEL,NV,BCC,AKIEC,BKL,DF,VASC"


@pytest.fixture
def project(tmp_path, monkeypatch):
    def make(**changes) -> DataProject:
        return DataProject(tmp_path / "project", monkeypatch.chdir, **changes)

    return make


def one_hot(*codes: str, yes: str = "1.0", no: str = "0.0") -> list[str]:
    """Rows of a one-hot table in the order of ONE_HOT for ISIC_1, ISIC_2, …"""
    columns = ONE_HOT.lower().split(",")[1:]
    return [
        f"ISIC_{number}," + ",".join(yes if code == column else no for column in columns)
        for number, code in enumerate(codes, 1)
    ]


def zipped(folder: Path, archive: Path) -> None:
    with zipfile.ZipFile(archive, "w") as content:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                content.write(path, path.relative_to(folder))
    shutil.rmtree(folder)


def flat(folder: Path) -> None:
    for path in list(folder.rglob("*.jpg")):
        path.rename(folder / path.name)


def class_folders(folder: Path) -> None:
    code = dict(row.split(",")[1:3] for row in ham_rows())
    for path in list(folder.rglob("*.jpg")):
        (folder / code[path.stem]).mkdir(exist_ok=True)
        path.rename(folder / code[path.stem] / path.name)


def doubled(folder: Path) -> None:
    for part in (1, 2):
        name = f"HAM10000_images_part_{part}"
        shutil.copytree(folder / name, folder / name.lower() / name.lower())


def as_tab(folder: Path) -> None:
    table = folder / "HAM10000_metadata.csv"
    (folder / "HAM10000_metadata.tab").write_text(table.read_text().replace(",", "\t"))
    table.unlink()


def eight_columns(folder: Path) -> None:
    table = folder / "HAM10000_metadata.csv"
    header, *rows = table.read_text().splitlines()
    write_table(table, [row + ",rosendahl" for row in rows], header + ",dataset")


def zipped_parts(folder: Path) -> None:
    for part in (1, 2):
        zipped(folder / f"HAM10000_images_part_{part}", folder / f"HAM10000_images_part_{part}.zip")


def zipped_whole(folder: Path) -> None:
    inner = folder / "inner"
    inner.mkdir()
    for path in list(folder.iterdir()):
        if path != inner:
            path.rename(inner / path.name)
    zipped(inner, folder / "archive.zip")


def zip_and_unpacked(folder: Path) -> None:
    copy = shutil.copytree(folder / "HAM10000_images_part_1", folder / "copy")
    zipped(copy, folder / "HAM10000_images_part_1.zip")


LAYOUTS = (
    lambda folder: None,
    flat,
    class_folders,
    doubled,
    as_tab,
    eight_columns,
    zipped_parts,
    zipped_whole,
    zip_and_unpacked,
)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__.strip("<>"))
def test_ham10000_is_the_same_in_every_layout(tmp_path, layout):
    folder = ham(tmp_path / "set")
    layout(folder)
    raw = tmp_path / "raw"
    provide("ham10000", SourceOptions(dir=str(folder)), raw, root=tmp_path, processes=1)
    table = read_source("ham10000", raw)
    assert check_labels(table, spec_of("ham10000").classes) == []
    assert table["image_id"].tolist() == [f"ISIC_{number:07d}" for number in range(28)]
    assert set(table["source"]) == {"rosendahl" if layout is eight_columns else "ham10000"}
    assert len([path for path in raw.rglob("*.jpg") if path.exists()]) == 28
    assert "CC BY-NC 4.0" in (raw / "LICENCE.txt").read_text()
    assert (tmp_path / "downloads").exists() == (layout in (zipped_parts, zipped_whole))


def test_second_copies_are_counted(tmp_path):
    folder = ham(tmp_path / "set")
    doubled(folder)
    done = provide("ham10000", SourceOptions(dir=str(folder)), tmp_path / "raw", root=tmp_path, processes=1)
    assert "28 images of HAM10000" in done
    assert "28 second copies" in done


def test_what_is_not_there_is_downloaded_into_the_store_and_linked(tmp_path, monkeypatch):
    folder = ham(tmp_path / "set")
    zipped_parts(folder)
    asked = []

    def fetch(file, store):
        asked.append((file.name, file.url.split("datafile/")[1], file.md5))
        return folder / file.name

    monkeypatch.setitem(sys.modules, "exp_tools.data.acquire.fetch", types.SimpleNamespace(fetch=fetch))
    done = provide("ham10000", SourceOptions(), tmp_path / "raw", root=tmp_path, processes=1)
    assert "28 images of HAM10000 downloaded" in done
    assert asked == [
        ("HAM10000_images_part_1.zip", "3172585", "4639bfa73ab251610530a97c898e6e46"),
        ("HAM10000_images_part_2.zip", "3172584", "da43d6cc50f6613013be07e8986b384b"),
        ("HAM10000_metadata.csv", "4338392?format=original", "8f85fb1aa29d80a2797247e434deb79d"),
    ]
    assert set(read_source("ham10000", tmp_path / "raw")["file"]) != {""}


@pytest.mark.parametrize("source", [name for name in SOURCES if name != "synthetic"])
def test_every_source_says_what_is_missing(source, project):
    made = project(data__source=source, data__dir="nowhere")
    assert "data.dir 'nowhere': there is no folder" in made.fails("download")
    (made.folder / "empty").mkdir()
    assert "there is no image" in made.change(data__dir="empty").fails("download")
    if not spec_of(source).files and source not in ("isic2018", "combined"):
        assert "set data.dir" in made.change(data__dir=None).fails("download")


def test_the_official_test_set_in_both_forms(tmp_path):
    for number in (1, 2, 3):
        save(tmp_path / "set" / f"ISIC_{number}.jpg", number)
    form = write_table(tmp_path / "set" / "ISIC2018_Task3_Test_GroundTruth.csv", one_hot("mel", "nv", "vasc"), ONE_HOT)
    provide("isic2018_test", SourceOptions(dir="set"), tmp_path / "one", root=tmp_path, processes=1)
    first = read_source("isic2018_test", tmp_path / "one")
    assert first["dx"].tolist() == ["mel", "nv", "vasc"]
    assert (first["lesion_id"] == first["image_id"]).all()
    rows = [f"HAMTEST_{n},ISIC_{n},{code},histo,50,male,back" for n, code in enumerate(("mel", "nv", "vasc"), 1)]
    write_table(form, rows)
    provide("isic2018_test", SourceOptions(dir="set"), tmp_path / "two", root=tmp_path, processes=1)
    second = read_source("isic2018_test", tmp_path / "two")
    assert second["dx"].tolist() == ["mel", "nv", "vasc"]
    assert second["lesion_id"].tolist() == ["HAMTEST_1", "HAMTEST_2", "HAMTEST_3"]
    assert set(first["split"]) == set(second["split"]) == {"test"}


def test_the_challenge_as_it_was_held(tmp_path, project):
    ham(tmp_path / "ham", ham_rows(56))
    rows = [f"HAMTEST_{n},ISIC_9{n:06d},{code},histo,50,male,back" for n, code in enumerate(CODES)]
    write_table(tmp_path / "test" / "truth.csv", rows)
    for n in range(7):
        save(tmp_path / "test" / f"ISIC_9{n:06d}.jpg", 60 + n)
    made = project(
        data__source="isic2018",
        data__dir=tmp_path / "ham",
        data__second_dir=tmp_path / "test",
        split__scheme="official",
        split__fractions=[0.5, 0.3, 0.2],
    )
    made.run()
    splits = made.splits().merge(made.labels()[["image_id", "lesion_id"]])
    assert (splits["lesion_id"].str.startswith("HAMTEST") == (splits["split"] == "test")).all()
    assert set(splits["split"]) == {"train", "val", "test"}
    assert made.metrics("split")["scheme"] == "official"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("image_id;dx;localization\nI1;mel;Rücken\n".encode("cp1252"), "t.csv is not UTF-8 (byte 0xfc in line 2)"),
        ("image_id,dx\nI1,mel\n".encode("utf-16"), "t.csv is UTF-16 or binary"),
        (b"", "t.csv is empty"),
        (b"# made by me\nimage_id,dx\nI1,mel\n", "t.csv begins with a comment"),
        (b"Image_ID,DX\nI1,mel\n", "t.csv has no column image_id, dx (Image_ID should be image_id, DX should be dx)"),
        (b"name,diagnosis\nI1,mel\n", "t.csv has no column image_id, dx (it has name, diagnosis)"),
        (None, "nor any file that looks like one"),
    ],
)
def test_a_table_that_is_not_found_is_said_by_name_and_why(tmp_path, content, why):
    save(tmp_path / "set/I1.png", 1)
    if content is not None:
        (tmp_path / "set/t.csv").write_bytes(content)
    provide("table", SourceOptions(dir="set"), tmp_path / "raw", root=tmp_path, processes=1)
    with pytest.raises(UserError) as caught:
        read_source("table", tmp_path / "raw")
    assert why in str(caught.value)


def ph2_rows(folder: Path) -> list[tuple[str, str]]:
    names = [(f"IMD{n:03d}", ("0", "1", "2")[n % 3]) for n in range(1, 7)]
    for number, (name, _) in enumerate(names):
        base = folder / "PH2 Dataset images" / name
        save(base / f"{name}_Dermoscopic_Image" / f"{name}.bmp", number)
        save(base / f"{name}_lesion" / f"{name}_lesion.bmp", number)
        save(base / f"{name}_roi" / f"{name}_R1_Label3.bmp", number)
    return names


def test_ph2_from_its_text_table(tmp_path):
    rows = ph2_rows(tmp_path / "set")
    lines = ["||   Name   || Histological Diagnosis || Clinical Diagnosis || Asymmetry ||"]
    lines += [f"|| {name} ||  ||  {code} || 0 || T ||" for name, code in rows] + ["", "Legend: 0 - Common Nevus"]
    (tmp_path / "set" / "PH2_dataset.txt").write_text("\n".join(lines))
    provide("ph2", SourceOptions(dir="set"), tmp_path / "raw", root=tmp_path, processes=1)
    table = read_source("ph2", tmp_path / "raw")
    codes = {"0": "common_nevus", "1": "atypical_nevus", "2": "mel"}
    assert dict(zip(table["image_id"], table["dx"], strict=True)) == {name: codes[code] for name, code in rows}
    assert all(Path(file).name == f"{name}.bmp" for name, file in zip(table["image_id"], table["file"], strict=True))
    assert len(list((tmp_path / "raw").rglob("*_lesion.bmp"))) == len(rows)
    assert (table["lesion_id"] != table["image_id"]).all()


@pytest.mark.parametrize("beside", [False, True])
def test_ph2_from_a_table_with_tabs(tmp_path, beside):
    rows = ph2_rows(tmp_path / "set")
    marks = {code: "\t".join("X" if code == place else "" for place in "012") for code in "012"}
    whole = ["PH2", "Image Name\tAsymmetry\tCommon Nevus\tAtypical Nevus\tMelanoma"]
    whole += [f"{name}\t0\t{marks[code]}" for name, code in rows]
    short = ["Name\tHistological Diagnosis\tClinical Diagnosis", *(f"{name}\t\t{code}" for name, code in rows)]
    (tmp_path / "set" / "PH2_dataset.txt").write_text("\n".join(short if beside else whole))
    if beside:
        book = Workbook()
        for line in whole:
            book.active.append([cell or None for cell in line.split("\t")])
        book.save(tmp_path / "set" / "PH2_dataset.xlsx")
    provide("ph2", SourceOptions(dir="set"), tmp_path / "raw", root=tmp_path, processes=1)
    codes = {"0": "common_nevus", "1": "atypical_nevus", "2": "mel"}
    table = read_source("ph2", tmp_path / "raw")
    assert dict(zip(table["image_id"], table["dx"], strict=True)) == {name: codes[code] for name, code in rows}
    (tmp_path / "raw/PH2_dataset.xlsx").unlink(missing_ok=True)
    assert read_source("ph2", tmp_path / "raw")["dx"].tolist() == table["dx"].tolist()


def test_the_test_set_of_isic_2019_has_metadata_without_lesions(tmp_path):
    for number in (1, 2):
        save(tmp_path / "set" / f"ISIC_{number}.jpg", number)
    header = "image,MEL,NV,BCC,AK,BKL,DF,VASC,SCC,UNK,score_weight,validation_weight"
    truth = ["ISIC_1,1.0,0,0,0,0,0,0,0,0,1.0,0.0", "ISIC_2,0,0,0,0,0,0,0,0,1.0,1.0,1.0"]
    write_table(tmp_path / "set" / "ISIC_2019_Test_GroundTruth.csv", truth, header)
    about = ["ISIC_1,55,anterior torso,female", "ISIC_2,,,"]
    write_table(tmp_path / "set" / "ISIC_2019_Test_Metadata.csv", about, "image,age_approx,anatom_site_general,sex")
    provide("isic", SourceOptions(dir="set"), tmp_path / "raw", root=tmp_path, processes=1)
    table = read_source("isic", tmp_path / "raw").set_index("image_id")
    assert table["dx"].to_dict() == {"ISIC_1": "mel", "ISIC_2": "unk"}
    assert table.loc["ISIC_1", ["age", "sex", "localization"]].tolist() == ["55", "female", "anterior torso"]
    assert table["lesion_id"].to_dict() == {"ISIC_1": "ISIC_1", "ISIC_2": "ISIC_2"}


def test_ph2_from_class_folders(tmp_path):
    for number, name in enumerate(("nev/IMD001", "atypical/IMD002", "mel/IMD003", "NEV2/IMD004")):
        save(tmp_path / "set" / f"{name}.bmp", number)
    provide("ph2", SourceOptions(dir="set"), tmp_path / "raw", root=tmp_path, processes=1)
    table = read_source("ph2", tmp_path / "raw")
    assert table.set_index("image_id")["dx"].to_dict() == {
        "IMD001": "common_nevus",
        "IMD002": "atypical_nevus",
        "IMD003": "mel",
        "IMD004": "NEV2",
    }
    assert [problem.kind for problem in check_labels(table, spec_of("ph2").classes)] == ["unknown_diagnosis"]


def test_the_real_ph2_table_counts_as_published_and_its_missing_images_are_skipped(real_data, project):
    made = project(data__source="ph2", data__dir=real_data / "PH2Dataset")
    assert "missing_image 185" in made.fails("download", "prepare")
    table = read_source("ph2", made.folder / "data/raw")
    assert table["dx"].value_counts().to_dict() == {"common_nevus": 80, "atypical_nevus": 80, "mel": 40}
    assert check_counts(table, spec_of("ph2").counts, "PH2") == []
    made.change(prepare__on_problem__missing_image="skip").run("prepare")
    assert len(made.images()) == len(made.labels()) == 15
    assert made.metrics("data")["problems"] == {"missing_image": {"skipped": 185}}


def test_the_real_ham10000_table_counts_as_published(real_data, tmp_path):
    shutil.copy(real_data / "HAM10000_metadata.csv", tmp_path)
    table = read_source("ham10000", tmp_path)
    assert check_counts(table, spec_of("ham10000").counts, "HAM10000") == []
    assert {problem.kind for problem in check_labels(table, spec_of("ham10000").classes)} == {"missing_image"}
    changed = table.assign(dx=["mel", *table["dx"][1:]])
    said = [problem.rule for problem in check_counts(changed, spec_of("ham10000").counts, "HAM10000")]
    assert len(said) == 2
    assert "dx bkl: 1,098, but the published set has 1099" in said[1]


def test_one_hot_tables_with_the_tables_beside_them(tmp_path):
    folder = tmp_path / "set"
    for number in range(1, 7):
        save(folder / "images" / f"ISIC_{number}.jpg", number)
    write_table(folder / "truth_2018.csv", one_hot("mel", "nv", "bkl"), ONE_HOT + "")
    header = "image,MEL,NV,BCC,AK,BKL,DF,VASC,SCC,UNK"
    rows = ["ISIC_4,0,0,0,True,0,0,0,False,0", "ISIC_5,0,0,0,0,0,0,0,1,0", "ISIC_6,0,1,0,0,0,0,0,0,0"]
    write_table(folder / "truth_2019.csv", rows, header)
    about = "image,age_approx,anatom_site_general,lesion_id,sex"
    write_table(folder / "meta.csv", ["ISIC_6,55,anterior torso,BCN_1,female", "ISIC_5,,,,"], about)
    write_table(folder / "groups.csv", ["ISIC_1,HAM_9,histopathology"], "image,lesion_id,diagnosis confirm type")
    provide("isic", SourceOptions(dir="set"), tmp_path / "raw", root=tmp_path, processes=1)
    table = read_source("isic", tmp_path / "raw").set_index("image_id")
    assert check_labels(table.reset_index(), spec_of("isic").classes) == []
    assert table["dx"].to_dict() == dict(
        zip([f"ISIC_{n}" for n in range(1, 7)], ["mel", "nv", "bkl", "ak", "scc", "nv"], strict=True)
    )
    assert table["lesion_id"].to_dict() == {
        "ISIC_1": "HAM_9",
        "ISIC_2": "ISIC_2",
        "ISIC_3": "ISIC_3",
        "ISIC_4": "ISIC_4",
        "ISIC_5": "ISIC_5",
        "ISIC_6": "BCN_1",
    }
    assert table.loc["ISIC_6", ["age", "sex", "localization"]].tolist() == ["55", "female", "anterior torso"]
    assert table.loc["ISIC_1", "dx_type"] == "histopathology"


def test_a_one_hot_row_of_no_class_or_several_is_a_problem_with_its_row(tmp_path):
    for number in range(1, 5):
        save(tmp_path / "set" / f"ISIC_{number}.jpg", number)
    rows = ["ISIC_1,1,1,0,0,0,0,0", "ISIC_2,0,0,0,0,0,0,0", "ISIC_3,maybe,0,0,0,0,0,0", "ISIC_4,0,1,0,0,0,0,0"]
    write_table(tmp_path / "set" / "truth.csv", rows, ONE_HOT)
    provide("isic", SourceOptions(dir="set"), tmp_path / "raw", root=tmp_path, processes=1)
    found = check_labels(read_source("isic", tmp_path / "raw"), spec_of("isic").classes)
    assert [(problem.kind, problem.row, problem.value) for problem in found] == [
        ("unknown_diagnosis", 2, "mel+nv"),
        ("unknown_diagnosis", 3, ""),
        ("unknown_diagnosis", 4, "mel=maybe"),
    ]
    assert "exactly one class" in found[0].rule


def test_the_binary_table_groups_patients_and_honours_its_duplicates(tmp_path, project):
    folder = tmp_path / "set"
    header = "image_name,patient_id,sex,age_approx,anatom_site_general_challenge,diagnosis,benign_malignant,target"
    rows = []
    for number in range(40):
        kind = ("melanoma", "malignant", 1) if number % 4 == 0 else ("unknown", "benign", 0)
        rows.append(f"ISIC_{number},IP_{number // 2},male,50,torso,{kind[0]},{kind[1]},{kind[2]}")
        save(folder / f"ISIC_{number}.jpg", number)
    write_table(folder / "train.csv", rows, header)
    write_table(folder / "ISIC_2020_Training_Duplicates.csv", ["ISIC_1,ISIC_7"], "image_name_1,image_name_2")
    made = project(data__source="isic", data__dir=folder, task="melanoma")
    made.run()
    labels = made.labels()
    assert "ISIC_7" not in set(labels["image_id"])
    assert ("listed_duplicate", "skipped") in made.problems()
    assert labels["group_id"].nunique() == 20
    assert labels["dx"].value_counts().to_dict() == {"benign": 29, "mel": 10}
    assert made.metrics("split")["groups_in_two_splits"] == 0
    assert labels["group"].nunique() == 20
    assert made.metrics("split")["lesions_known"] is False


def own_folders(folder: Path) -> Path:
    for name in ("Melanoma", "birthmark", "Basal cell carcinoma"):
        for number in range(20):
            save(folder / name / f"{name[:2]}{number}.png", number + 30 * len(name))
    return folder


def test_anybodys_class_folders(tmp_path, project, capsys):
    made = project(data__source="folder", data__dir=own_folders(tmp_path / "set"))
    made.run()
    assert set(made.labels()["dx"]) == {"mel", "bcc", "birthmark"}
    assert made.metrics("split")["lesions_known"] is False
    assert "WARNING: there are images whose lesion is unknown" in capsys.readouterr().out
    assert not (made.folder / "data/raw/LICENCE.txt").exists()
    assert made.change(task="melanoma").run("split") is None


def test_a_name_in_two_class_folders_is_two_images(tmp_path):
    for name in ("a/1.png", "b/1.png", "b/2.png"):
        save(tmp_path / "set" / name, len(name))
    provide("folder", SourceOptions(dir="set"), tmp_path / "raw", root=tmp_path, processes=1)
    table = read_source("folder", tmp_path / "raw")
    assert table["image_id"].tolist() == ["a__1", "b__1", "2"]
    assert check_labels(table, None) == []


def test_given_folders_of_a_split_are_obeyed(tmp_path, project):
    for number in range(12):
        for split in ("train", "valid", "test"):
            save(tmp_path / "set" / split / ("mel" if number % 2 else "nv") / f"{split}{number}.png", number)
    made = project(data__source="folder", data__dir=tmp_path / "set", split__scheme="column")
    made.run()
    names = made.splits()["image_id"].str.extract(r"([a-z]+)")[0].replace("valid", "val")
    assert (names == made.splits()["split"]).all()


def test_an_image_outside_of_class_folders_is_refused(tmp_path, project):
    save(tmp_path / "set" / "x.png")
    made = project(data__source="folder", data__dir=tmp_path / "set")
    assert "x.png is in no class folder" in made.fails("download", "prepare")


def own_table(folder: Path, **columns) -> Path:
    for number in range(30):
        save(folder / "images" / f"P{number}.png", number)
    table = pd.DataFrame({"image_id": [f"P{n}" for n in range(30)], "dx": ["spot", "mark", "mel"] * 10} | columns)
    table.to_csv(folder / "labels.csv", index=False)
    return folder


def test_anybodys_table_needs_two_columns(tmp_path, project):
    made = project(data__source="table", data__dir=own_table(tmp_path / "set"))
    made.run()
    labels = made.labels()
    assert set(labels["dx"]) == {"spot", "mark", "mel"}
    assert (labels["lesion_id"] == labels["image_id"]).all()
    assert labels.loc[0, ["sex", "localization", "source"]].tolist() == ["unknown", "unknown", "table"]


def test_the_columns_of_a_table_are_used(tmp_path, project):
    columns = {"lesion_id": [f"L{n // 3}" for n in range(30)], "split": ["train"] * 15 + ["test"] * 15}
    made = project(data__source="table", data__dir=own_table(tmp_path / "set", dx="spot"), split__scheme="column")
    own_table(tmp_path / "set", dx=["a"] * 3 + ["b"] * 27, **columns)
    made.run()
    splits = made.splits()
    assert (splits["split"][15:] == "test").all()
    assert set(splits["split"][:15]) == {"train", "val"}
    assert made.metrics("data")["lesions"] == 10
    assert made.metrics("split")["classes_missing"]["test"] == {"a": "its 1 group(s) are fewer than 3 parts"}


def test_a_separate_test_table(tmp_path, project):
    folder = own_table(tmp_path / "set")
    write_table(folder / "held_out.csv", ["Q1,mel", "Q2,spot"], "image_id,dx")
    for number in (1, 2):
        save(folder / "images" / f"Q{number}.png", 70 + number)
    made = project(data__source="table", data__dir=folder)
    assert "more than one table with the columns image_id and dx" in made.fails("download", "prepare")
    made.change(data__test_table="held_out.csv", split__scheme="column").run()
    splits = made.splits()
    assert splits.loc[splits["split"] == "test", "image_id"].tolist() == ["Q1", "Q2"]
    elsewhere = shutil.move(folder / "held_out.csv", tmp_path / "other.csv")
    made.change(data__test_table=str(elsewhere)).run()
    assert made.splits().loc[lambda table: table["split"] == "test", "image_id"].tolist() == ["Q1", "Q2"]
    assert "there is no such file" in made.change(data__test_table="none.csv").fails("download")


def test_words_that_differ_in_case_are_one_class_once_said(tmp_path, project):
    made = project(
        data__source="table",
        data__dir=own_table(tmp_path / "set", dx=["spot", "Spot ", "Melanoma", "spot", "spot"] * 6),
    )
    assert "untidy_text 6" in made.fails("download", "prepare")
    made.change(prepare__on_problem__untidy_text="fix").run("prepare")
    assert made.labels()["dx"].value_counts().to_dict() == {"spot": 24, "mel": 6}


def test_both_sets_in_seven_classes(tmp_path, project):
    ham(tmp_path / "ham")
    rows = ph2_rows(tmp_path / "ph2")
    lines = [f"|| {name} ||  ||  {code} || 0 ||" for name, code in rows]
    (tmp_path / "ph2" / "PH2_dataset.txt").write_text("\n".join(lines))
    made = project(data__source="combined", data__dir=tmp_path / "ham", data__second_dir=tmp_path / "ph2")
    made.run("download", "prepare")
    labels = made.labels().set_index("image_id")
    assert len(labels) == 34
    assert [labels.loc[name, "dx"] for name, _ in rows] == [{"2": "mel"}.get(code, "nv") for _, code in rows]
    assert labels["source"].value_counts().to_dict() == {"ham10000": 28, "ph2": 6}
    licence = (made.folder / "data/raw/LICENCE.txt").read_text()
    assert "CC BY-NC" in licence
    assert "not to be passed on" in licence


@pytest.mark.parametrize("source", ["ham10000", "folder", "table"])
def test_a_limit_works_for_every_source(tmp_path, project, source):
    folder = tmp_path / "set"
    {"ham10000": lambda f: ham(f, ham_rows(84)), "folder": own_folders, "table": own_table}[source](folder)
    made = project(data__source=source, data__dir=folder, data__limit=21)
    made.run("download", "prepare")
    labels = made.labels()
    assert 14 <= len(labels) <= 21
    assert len(made.images()) == len(labels)
    assert len([path for path in (made.folder / "data/raw").rglob("*.*g") if path.is_symlink()]) == len(labels)
    if source == "ham10000":
        assert set(labels["dx"]) == set(CODES)
        assert (labels["lesion_id"].value_counts() == 2).all()
    assert {kind for kind, _ in made.problems()} <= {"unexpected_count"}


def test_every_source_declares_what_a_reader_wants_to_know():
    for source in SOURCES:
        facts = spec_of(source)
        assert facts.title
        own = source in ("synthetic", "folder", "table")
        assert (facts.licence is None) == own
        assert own or facts.where.startswith("https://")
        assert all(file.url.startswith("https://") and len(file.md5) == 32 for file in facts.files)


def test_packed_images_are_in_the_order_of_the_labels(tmp_path, project):
    made = project(data__source="ham10000", data__dir=ham(tmp_path / "set"), prepare__image_size=36)
    (tmp_path / "set/HAM10000_images_part_1/ISIC_0000002.jpg").write_bytes(b"")
    made.change(prepare__on_problem__empty_image="skip").run("download", "prepare")
    from helpers.datasets import picture

    packed = made.images()
    for place, image_id in enumerate(made.labels()["image_id"]):
        original = np.asarray(picture(int(image_id[-7:])).resize((36, 36)))
        difference = [np.abs(image.astype(int) - original).mean() for image in packed]
        assert int(np.argmin(difference)) == place
