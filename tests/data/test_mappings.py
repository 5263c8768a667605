"""Sets with columns and words of their own come in with at most a mapping's name."""

import gzip
import io
import json
import sys
import threading
import typing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
import pandas as pd
import pytest
from helpers.datasets import DataProject, picture, save, write_table

from exp_tools.data.acquire import isic
from exp_tools.data.labels.synonyms import LIST, code_of, plain
from exp_tools.data.sources.mapping import load_mapping, ready_mappings
from exp_tools.params import Source


@pytest.fixture
def project(tmp_path, monkeypatch):
    return lambda **changes: DataProject(tmp_path / "project", monkeypatch.chdir, **changes)


def pictures(folder, names):
    for number, name in enumerate(names):
        save(folder / name, 700 + number)


ISIC = "isic_id,attribution,copyright_license,age_approx,anatom_site_general,diagnosis_1,diagnosis_2,diagnosis_3,sex"
NEVUS = "Benign,Benign melanocytic proliferations,Nevus"
MELANOMA = "Malignant,Malignant melanocytic proliferations (Melanoma),Melanoma Invasive"


def isic_archive(folder):
    rows = [
        f"ISIC_0000001,Clinic A,CC-0,85+,head/neck,{NEVUS},female,P1,histopathology",
        f"ISIC_0000002,Clinic A,CC-BY,40,,{MELANOMA},male,P1,",
        "ISIC_0000003,Clinic B,CC-BY-NC,,,Benign,Benign soft tissue proliferations - Neural,Neurofibroma,male,P2,",
        "ISIC_0000004,Clinic B,CC-BY-NC,,,Malignant,,,male,P3,single image expert consensus",
    ]
    write_table(folder / "metadata.csv", rows, ISIC + ",patient_id,diagnosis_confirm_type")
    pictures(folder, [f"ISIC_000000{n}.jpg" for n in range(1, 5)])
    return {
        "dx": ["nv", "mel", "benign", "malignant"],
        "group": ["P1", "P1", "P2", "P3"],
        "dx_type": ["histo", "unknown", "unknown", "consensus"],
        "age": [85.0, 40.0, None, None],
        "extra_copyright_license": ["CC-0", "CC-BY", "CC-BY-NC", "CC-BY-NC"],
    }


def isic_archive_of_before(folder):
    rows = [
        "ISIC_0000001,nevus,benign,60,male",
        "ISIC_0000002,scar,benign,,female",
        "ISIC_0000003,,malignant,,",
        "ISIC_0000004,solar lentigo,benign,,",
    ]
    write_table(folder / "metadata.csv", rows, "isic_id,diagnosis,benign_malignant,age_approx,sex")
    pictures(folder, [f"ISIC_000000{n}.jpg" for n in range(1, 5)])
    return {"dx": ["nv", "benign", "malignant", "bkl"]}


def bcn20000(folder):
    header = "bcn_filename,age_approx,anatom_site_general,diagnosis,lesion_id,capture_date,sex,split"
    rows = [
        "BCN_0000000001.jpg,55.0,anterior torso,MEL,BCN_0003884,2012-05-16,male,train",
        "BCN_0000000002.jpg,60.0,,AK,BCN_0003885,2012-05-16,female,train",
        "BCN_0000000003.jpg,,head/neck,SCC,BCN_0003886,2012-05-16,female,train",
    ]
    write_table(folder / "bcn_20k_train.csv", rows, header)
    write_table(folder / "bcn_20k_test.csv", ["BCN_0000000009.jpg,55.0,,,male"], "bcn_filename,age_approx,x,y,sex")
    pictures(folder / "images", [f"BCN_000000000{n}.jpg" for n in (1, 2, 3)])
    return {
        "image_id": ["BCN_0000000001", "BCN_0000000002", "BCN_0000000003"],
        "dx": ["mel", "ak", "scc"],
        "lesion_id": ["BCN_0003884", "BCN_0003885", "BCN_0003886"],
        "extra_capture_date": ["2012-05-16"] * 3,
    }


def pad_ufes_20(folder):
    header = (
        "patient_id,lesion_id,smoke,drink,background_father,age,gender,fitspatrick,region,diameter_1,diagnostic,itch,"
        "img_id,biopsed"
    )
    rows = [
        "PAT_1,10,False,False,POMERANIA,55,FEMALE,3.0,NECK,6.0,BCC,True,PAT_1_10_11.png,True",
        "PAT_1,12,,,,55,,,ARM,,ACK,False,PAT_1_12_13.png,False",
        "PAT_2,20,True,False,ITALY,71,MALE,2.0,BACK,12.0,MEL,False,PAT_2_20_21.png,True",
        "PAT_3,30,,,,32,,,FACE,,NEV,False,PAT_3_30_31.png,False",
        "PAT_4,40,,,,66,,,HAND,,SEK,True,PAT_4_40_41.png,False",
    ]
    write_table(folder / "metadata.csv", rows, header)
    pictures(folder / "imgs_part_1", [row.split(",")[-2] for row in rows])
    return {
        "image_id": ["PAT_1_10_11", "PAT_1_12_13", "PAT_2_20_21", "PAT_3_30_31", "PAT_4_40_41"],
        "dx": ["bcc", "akiec", "mel", "nv", "bkl"],
        "group": ["PAT_1", "PAT_1", "PAT_2", "PAT_3", "PAT_4"],
        "lesion_id": ["10", "12", "20", "30", "40"],
        "sex": ["female", "unknown", "male", "unknown", "unknown"],
        "localization": ["NECK", "ARM", "BACK", "FACE", "HAND"],
        "extra_fitspatrick": ["3.0", "unknown", "2.0", "unknown", "unknown"],
    }


def derm7pt(folder):
    rows = [
        "1,basal cell carcinoma,0,female,back,NEL/NEL025.JPG,NEL/Nel026.jpg",
        "2,clark nevus,1,male,lower limbs,NEL/NEL030.JPG,NEL/Nel031.jpg",
        "3,melanoma (in situ),4,male,back,NGL/NGL030.JPG,NGL/Nel026.jpg",
        "4,melanosis,4,male,back,NGL/NGL031.JPG,NGL/NGL032.jpg",
    ]
    write_table(folder / "meta/meta.csv", rows, "case_num,diagnosis,seven_point_score,sex,location,clinic,derm")
    for name, numbers in (("train", (0, 3)), ("valid", (1,)), ("test", (2,))):
        write_table(folder / f"meta/{name}_indexes.csv", [str(number) for number in numbers], "indexes")
    pictures(folder / "images", [name for row in rows for name in row.split(",")[-2:]])
    return {
        "image_id": ["NEL__Nel026", "Nel031", "NGL__Nel026", "NGL032"],
        "dx": ["bcc", "nv", "mel", "melanosis"],
        "split": ["train", "val", "test", "train"],
        "lesion_id": ["1", "2", "3", "4"],
        "extra_seven_point_score": ["0", "1", "4", "4"],
    }


def ddi(folder):
    rows = ["000001.png,12,False,melanocytic-nevi", "000002.png,56,True,melanoma", "000003.png,34,False,acrochordon"]
    write_table(folder / "ddi_metadata.csv", rows, "DDI_file,skin_tone,malignant,disease")
    pictures(folder, ["000001.png", "000002.png", "000003.png"])
    return {"image_id": [1, 2, 3], "dx": ["nv", "mel", "acrochordon"], "extra_skin_tone": [12, 56, 34]}


def fitzpatrick17k(folder):
    names = [f"{n:032x}" for n in (1, 2, 3)]
    rows = [
        f"{names[0]},3,3,melanoma,malignant melanoma,malignant,,http://example.org/1,e1.jpg",
        f"{names[1]},-1,2,psoriasis,inflammatory,non-neoplastic,1 Diagnostic,http://example.org/2,e2.jpg",
        f"{names[2]},6,5,seborrheic keratosis,benign epidermal,benign,3 Wrongly labelled,http://example.org/3,e3.jpg",
    ]
    header = "md5hash,fitzpatrick_scale,fitzpatrick_centaur,label,nine_partition_label,three_partition_label,qc,url,u"
    write_table(folder / "fitzpatrick17k.csv", rows, header)
    pictures(folder, [f"{name}.jpg" for name in names])
    return {"dx": ["mel", "psoriasis", "bkl"], "extra_fitzpatrick_scale": [3, -1, 6]}


def milk10k(folder):
    header = "lesion_id,image_type,isic_id,attribution,copyright_license,altered,age_approx,sex,skin_tone,site"
    rows, names = [], []
    for lesion in (1, 2):
        for place, kind in enumerate(("clinical: close-up", "dermoscopic")):
            name = f"ISIC_000000{2 * lesion + place}"
            rows.append(f"IL_000000{lesion},{kind},{name},MILK study team,CC-BY-NC,altered,60,male,3,head_neck_face")
            names.append(f"IL_000000{lesion}/{name}.jpg")
    write_table(folder / "MILK10k_Training_Metadata.csv", rows, header)
    truth = "lesion_id,AKIEC,BCC,BEN_OTH,BKL,DF,INF,MAL_OTH,MEL,NV,SCCKA,VASC"
    lines = [
        "IL_0000001,0.0,1.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0",
        "IL_0000002,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,1.0,0.0",
    ]
    write_table(folder / "MILK10k_Training_GroundTruth.csv", lines, truth)
    pictures(folder, names)
    return {"image_id": ["ISIC_0000003", "ISIC_0000005"], "dx": ["bcc", "scc"], "extra_skin_tone": [3, 3]}


def isic_2016(folder):
    for part, rows in (
        ("Training", ["ISIC_0000001,benign", "ISIC_0000002,malignant"]),
        ("Test", ["ISIC_0000003,benign"]),
    ):
        write_table(folder / f"ISBI2016_ISIC_Part3_{part}_GroundTruth.csv", rows[1:], rows[0])
    pictures(folder, [f"ISIC_000000{n}.jpg" for n in (1, 2, 3)])
    return {"dx": ["benign", "benign", "mel"], "split": ["test", "train", "train"]}


def isic_2017(folder):
    parts = {
        "Training": "ISIC_0000001,1.0,0.0",
        "Validation": "ISIC_0000002,0.0,1.0",
        "Test_v2": "ISIC_0000003,0.0,0.0",
    }
    for part, row in parts.items():
        header = "image_id,melanoma,seborrheic_keratosis"
        write_table(folder / f"ISIC-2017_{part}_Part3_GroundTruth.csv", [row], header)
    write_table(
        folder / "ISIC-2017_Training_Data_metadata.csv", ["ISIC_0000001,55,female"], "image_id,age_approximate,sex"
    )
    pictures(folder, [f"ISIC_000000{n}.jpg" for n in (1, 2, 3)])
    return {"dx": ["nv", "mel", "bkl"], "split": ["test", "train", "val"], "age": [None, 55.0, None]}


def isic_2024(folder):
    header = "isic_id,target,patient_id,age_approx,sex,iddx_full,iddx_1,iddx_2,iddx_3,iddx_4,iddx_5,tbp_lv_A"
    rows = [  # a comma in a cell, in quotes
        "ISIC_0000001,0,IP_1,60,male,Benign,Benign,,,,,20.2",
        'ISIC_0000002,1,IP_2,60,male,full,Malignant,,Basal cell carcinoma,"Basal cell carcinoma, Nodular",,1',
    ]
    write_table(folder / "train-metadata.csv", rows, header)
    pictures(folder / "train-image/image", ["ISIC_0000001.jpg", "ISIC_0000002.jpg"])
    return {"dx": ["benign", "bcc"], "group": ["IP_1", "IP_2"], "extra_tbp_lv_a": [20.2, 1.0]}


LAYOUTS = {
    "isic_archive": isic_archive,
    "bcn20000": bcn20000,
    "pad_ufes_20": pad_ufes_20,
    "derm7pt": derm7pt,
    "ddi": ddi,
    "fitzpatrick17k": fitzpatrick17k,
    "milk10k": milk10k,
    "isic_2016": isic_2016,
    "isic_2017": isic_2017,
    "isic_2024": isic_2024,
    "hiba": isic_archive,
    "mskcc": isic_archive_of_before,
}


@pytest.mark.parametrize("source", LAYOUTS)
def test_a_set_in_its_own_columns_comes_in_by_its_name(tmp_path, project, source, capsys):
    expected = LAYOUTS[source](tmp_path / "set")
    made = project(data__source=source, data__dir=tmp_path / "set")
    made.run("download", "prepare")
    labels = made.labels()
    for column, values in expected.items():
        found = [None if cell == "" else cell for cell in labels[column]]
        typed = [cell if right is None else type(right)(cell) for cell, right in zip(found, values, strict=True)]
        assert typed == values
    assert len(made.images()) == len(labels)
    facts = load_mapping(source)
    assert facts.title in (made.folder / "data/raw/LICENCE.txt").read_text(encoding="utf-8")


def test_every_layout_is_a_mapping_and_every_mapping_a_source():
    assert set(LAYOUTS) == set(ready_mappings())
    assert set(ready_mappings()) <= set(typing.get_args(Source))


def own(folder, header="file,diagnosis,lesion,kind,hospital", ending=".csv"):
    rows = [
        "pics/a.jpg,nevus,L1,dermoscopic,North",
        "pics/b.JPG,Melanoma NOS,L2,dermoscopic,South",
        "pics/c.png,scar,L3,dermoscopic,",
        "pics/d.png,nevus,L4,clinical,North",
    ]
    pictures(folder, [row.split(",")[0] for row in rows])
    table = pd.DataFrame([row.split(",") for row in rows], columns=header.split(","))
    if ending == ".xlsx":
        table.to_excel(folder / "labels.xlsx", index=False)
    elif ending == ".csv.gz":
        (folder / "labels.csv.gz").write_bytes(gzip.compress(table.to_csv(index=False).encode()))
    else:
        table.to_csv(folder / f"labels{ending}", index=False, sep="\t" if ending == ".tsv" else ",")
    return folder


OWN = {
    "data__columns": {"image_id": "file", "dx": "diagnosis", "lesion_id": "lesion"},
    "data__classes": {"melanoma nos": "mel", "scar": None},
    "data__filter": {"kind": "dermoscopic"},
}


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".csv.gz", ".xlsx"])
def test_a_table_of_ones_own_is_read_with_three_parameters(tmp_path, project, ending, capsys):
    made = project(data__source="table", data__dir=own(tmp_path / "set", ending=ending), **OWN)
    made.run("download", "prepare")
    labels = made.labels()
    assert labels[["image_id", "dx", "lesion_id"]].to_numpy().tolist() == [["a", "nv", "L1"], ["b", "mel", "L2"]]
    assert labels["extra_hospital"].tolist() == ["North", "South"]
    assert "extra_file" not in labels
    said = capsys.readouterr().out
    assert "3 of 4 rows have kind dermoscopic" in said
    assert "1 rows of 'scar' are left out" in said
    assert "read as diagnoses: nevus = nv" in said
    assert len(made.metrics("data")["reading"]) == 3
    assert made.problems() == []


def test_options_of_a_table_say_what_is_wrong(tmp_path, project):
    made = project(data__source="table", data__dir=own(tmp_path / "set"), **OWN)
    made.change(data__classes={"nevuss": "nv", "scar": None})
    said = made.fails("download", "prepare")
    assert "data.classes does not list 'Melanoma NOS' (1)" in said
    said = made.change(data__classes={"Melanoma NOSS": "mel", "scar": "scar"}).fails("download", "prepare")
    assert "did you mean 'Melanoma NOSS'?" in said
    said = made.change(data__classes=OWN["data__classes"], data__filter={"kin": "x"}).fails("download", "prepare")
    assert "no column kin for data.filter (did you mean 'kind'?)" in said
    said = made.change(data__filter={"kind": "TBP"}).fails("download", "prepare")
    assert "no row passes data.filter kind: TBP; the column has 'dermoscopic' (3), 'clinical' (1)" in said
    said = made.change(data__filter=None, data__licences=["CC-0"]).fails("download", "prepare")
    assert "no column copyright_license or license or licence for data.licences" in said
    made.change(data__licences=None, data__columns={"image_id": "file", "dx": "diagnosis", "age": "years"})
    assert "labels.csv has no column years for age" in made.fails("download", "prepare")
    made.change(data__columns={"image_id": "name", "dx": "diagnosis"})
    assert "has no column name, diagnosis" not in made.fails("download", "prepare")
    made.change(data__source="ham10000", data__columns=None)
    assert "data.classes is of no use with data.source=ham10000" in made.fails("download")


def test_the_message_about_columns_can_be_followed(tmp_path, project):
    made = project(data__source="table", data__dir=own(tmp_path / "set"))
    said = made.fails("download", "prepare")
    assert "data.columns={image_id: …, dx: …}" in said
    assert "it has file, diagnosis, lesion, kind, hospital" in said
    made.change(data__columns={"image_id": "file", "dx": "diagnosis"}).run("download", "prepare")
    assert len(made.labels()) == 4


def test_a_name_with_folders_is_never_another_file_of_that_name(tmp_path, project):
    save(tmp_path / "set/test/a.png", 1)
    save(tmp_path / "set/test/b.png", 2)
    save(tmp_path / "set/train/b.png", 3)
    rows = ["train/a.png,mel", "train/b.png,nv", "set/test/b.png,mel"]
    write_table(tmp_path / "set/t.csv", rows, "image_id,dx")
    made = project(data__source="table", data__dir=tmp_path / "set")
    assert "no image file for 'a'" in made.fails("download", "prepare")
    made.change(prepare__on_problem__missing_image="skip").run("prepare")
    assert made.labels()["image_id"].tolist() == ["train__b", "set__test__b"]
    for packed, number in zip(made.images(), (3, 2), strict=True):
        original = np.asarray(picture(number).resize((32, 32)))
        assert np.abs(packed.astype(int) - original).mean() < 20


def test_an_unlisted_folder_stops_where_classes_are_given(tmp_path, project):
    for name in ("Clark", "naevi", "junk"):
        save(tmp_path / "set" / name / f"{name}.png", len(name))
    made = project(data__source="folder", data__dir=tmp_path / "set", data__classes={"Clarke": "nv"})
    said = made.fails("download", "prepare")
    assert "the class folders: data.classes does not list 'Clark' (1) (did you mean 'Clarke'?), 'junk' (1)" in said


def test_folders_are_given_classes_too(tmp_path, project, capsys):
    for name in ("Clark", "naevi", "junk"):
        save(tmp_path / "set" / name / f"{name}.png", len(name))
    made = project(data__source="folder", data__dir=tmp_path / "set", data__classes={"clark": "nv", "junk": None})
    made.run("download", "prepare")
    assert made.labels()["dx"].tolist() == ["nv", "nv"]
    assert "1 images of folder junk are left out" in capsys.readouterr().out
    assert made.problems() == []


def test_licences_restrict_a_set(tmp_path, project):
    isic_archive(tmp_path / "set")
    made = project(data__source="isic_archive", data__dir=tmp_path / "set", data__licences=["CC BY 4.0", "cc0"])
    made.run("download", "prepare")
    assert made.labels()["extra_copyright_license"].tolist() == ["CC-0", "CC-BY"]
    assert made.metrics("data")["licences"] == {"CC-0": 1, "CC-BY": 1}
    made.change(data__classes={"Malignant": None}, data__licences=None).run("download", "prepare")
    assert made.labels()["dx"].tolist() == ["nv", "mel", "benign"]


def test_an_external_set_has_columns_of_its_own(tmp_path, project, capsys):
    own(tmp_path / "clinic", header="name,what,lesion,kind,hospital")
    for number in range(4):
        save(tmp_path / "mine" / ("nv" if number % 2 else "mel") / f"m{number}.png", 900 + number)
    clinic = {
        "source": "table",
        "dir": str(tmp_path / "clinic"),
        "table": "labels.csv",
        "columns": {"image_id": "name", "dx": "what"},
        "classes": {"Melanoma NOS": "mel", "scar": None},
        "filter": {"kind": "dermoscopic"},
    }
    made = project(data__source="folder", data__dir=tmp_path / "mine", data__external={"clinic": clinic})
    made.run("download", "prepare", "external")
    labels = pd.read_csv(made.folder / "data/external/labels.csv")
    assert labels["dx"].tolist() == ["nv", "mel"]
    assert labels["extra_hospital"].tolist() == ["North", "South"]
    assert "clinic: labels.csv: 3 of 4 rows have kind dermoscopic" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("word", "code"),
    [
        ("nevus", "nv"),
        ("Melanocytic-Nevus", "nv"),
        ("seborrheic keratosis", "bkl"),
        ("pigmented_benign_keratosis", "bkl"),
        ("actinic keratosis", "akiec"),
        ("ACK", "akiec"),
        ("SEK", "bkl"),
        ("NEV", "nv"),
        ("Melanoma, NOS", "mel"),
        ("Squamous cell carcinoma in situ", "akiec"),
        ("lentigo", "lentigo"),
    ],
)
def test_words_that_the_field_uses(word, code):
    assert code_of(word) == code


PARTS_OF_THE_HIERARCHY = {
    "Malignant:Malignant melanocytic proliferations (Melanoma)": "mel",
    "Benign:Benign melanocytic proliferations:Nevus": "nv",
    "Benign:Benign epidermal proliferations:Lichen planus like keratosis": "bkl",
    "Benign:Benign epidermal proliferations:Pigmented benign keratosis": "bkl",
    "Benign:Benign epidermal proliferations:Seborrheic keratosis": "bkl",
    "Benign:Benign epidermal proliferations:Solar lentigo": "bkl",
    "Malignant:Malignant adnexal epithelial proliferations - Follicular:Basal cell carcinoma": "bcc",
    "Benign:Benign soft tissue proliferations - Fibro-histiocytic:Dermatofibroma": "df",
    "Benign:Benign soft tissue proliferations - Vascular": "vasc",
    "Benign:Hemorrhagic lesions": "vasc",
    "Indeterminate:Indeterminate epidermal proliferations:Solar or actinic keratosis": "akiec",
    "Malignant:Malignant epidermal proliferations:Squamous cell carcinoma in situ": "akiec",
    "Malignant:Malignant epidermal proliferations:Squamous cell carcinoma, Invasive": "scc",
    "Malignant:Malignant epidermal proliferations:Squamous cell carcinoma, NOS": "scc",
}


def test_synonyms_are_those_of_the_archives_own_hierarchy():
    hierarchy = pytest.importorskip("isic_metadata.diagnosis_hierarchical").DiagnosisEnum
    expected = {
        plain(path.value.split(":")[-1]): code
        for path in hierarchy
        for part, code in PARTS_OF_THE_HIERARCHY.items()
        if path.value == part or path.value.startswith(part + ":")
    }
    assert len(expected) > 100
    assert {word: code_of(word) for word in expected} == expected
    listed = pd.read_csv(LIST)
    words = {plain(path.value.split(":")[-1]) for path in hierarchy} | {"benign", "malignant", "indeterminate"}
    legacy = pytest.importorskip("isic_metadata.fields").LegacyDxEnum
    ours = listed.loc[listed["source"].str.startswith("isic-metadata"), "word"]
    assert set(ours) <= words | {plain(word.value) for word in legacy}
    assert listed["word"].is_unique
    assert listed["word"].map(plain).equals(listed["word"])


class Archive(BaseHTTPRequestHandler):
    """The part of the ISIC Archive's API that isic-cli asks for, with three pictures in two pages."""

    IMAGES: ClassVar = [
        {"isic_id": f"ISIC_000000{n}", "copyright_license": "CC-0", "attribution": "Clinic A"} for n in range(1, 4)
    ]
    asked: ClassVar[list[str]] = []

    def do_GET(self):
        url = urlsplit(self.path)
        query = parse_qs(url.query)
        self.asked.append(self.path)
        if url.path.endswith(".jpg"):
            body, kind = self.picture(), "image/jpeg"
        elif "license-file" in url.path:
            body, kind = b"CC0 1.0", "text/plain"
        else:
            body, kind = json.dumps(self.answer(url.path, query)).encode(), "application/json"
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def answer(self, path, query):
        here = f"http://127.0.0.1:{self.server.server_address[1]}"
        if path.endswith("/size/"):
            return {"size": 3000}
        found = [] if query.get("query") == ["nothing"] else self.IMAGES
        page = int(query.get("page", ["0"])[0])
        some = [
            image
            | {
                "files": {"full": {"url": f"{here}/{image['isic_id']}.jpg", "size": 1000}},
                "metadata": {"acquisition": {}, "clinical": {"diagnosis_1": "Benign", "diagnosis_3": "Nevus"}},
            }
            for image in found[2 * page : 2 * page + 2]
        ]
        more = f"{here}/api/v2/images/search/?page={page + 1}" if len(found) > 2 * page + 2 else None
        return {"count": len(found), "results": some, "next": more}

    def picture(self):
        packed = io.BytesIO()
        picture(int(self.path[-5])).save(packed, "JPEG")
        return packed.getvalue()

    def log_message(self, *args):
        pass


@pytest.fixture
def archive(monkeypatch):
    pytest.importorskip("isic_cli")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Archive)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    start = f"import isic_cli.cli as c, sys; c.DOMAINS['prod'] = {address!r}; sys.argv[0] = 'isic'; c.main()"
    monkeypatch.setattr(isic, "ARCHIVE", address)
    monkeypatch.setattr(isic, "COMMAND", (sys.executable, "-c", start, *isic.COMMAND[3:]))
    Archive.asked.clear()
    yield Archive.asked
    server.shutdown()
    server.server_close()


def test_a_query_is_downloaded_once(tmp_path, project, archive):
    made = project(data__source="isic_archive", data__query="diagnosis_3:Nevus AND sex:male")
    made.run("download", "prepare")
    assert made.labels()["dx"].tolist() == ["nv"] * 3
    assert made.labels()["extra_attribution"].tolist() == ["Clinic A"] * 3
    assert any("query=diagnosis_3:Nevus%20AND%20sex:male" in path for path in archive)
    count = len(archive)
    made.run("download", "prepare")
    assert len(archive) == count
    made.change(data__query="212, 249").run("download")
    assert any("collections=212,249" in unquote(path) for path in archive)
    assert "no image for data.query 'nothing'" in made.change(data__query="nothing").fails("download")


def test_a_query_that_cannot_work_says_so(tmp_path, project, monkeypatch):
    made = project(data__source="isic_archive", data__query="sex:male", data__dir=own(tmp_path / "set"))
    assert "set one of them to null" in made.fails("download")
    monkeypatch.setattr(isic, "ARCHIVE", "http://127.0.0.1:9")
    pytest.importorskip("isic_cli")
    assert "cannot be reached" in made.change(data__dir=None).fails("download")
    monkeypatch.setattr(isic.importlib.util, "find_spec", lambda name: None)
    assert "pip install -e '.[isic]'" in made.fails("download")
    assert "data.query is of no use with data.source=ddi" in made.change(data__source="ddi").fails("download")
