"""Everything that goes wrong in practice has its documented outcome: said, never fatal with a traceback, nothing torn.

Each case spoils a good little HAM10000 in one way. `stops` is the outcome with every kind at its value in params.yaml,
`skips` and `fixes` what the parameter of that kind turns it into.
"""

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from helpers.datasets import CODES, DataProject, ham, ham_rows, picture, save, write_table
from PIL import Image

pytestmark = pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")

TABLE = "HAM10000_metadata.csv"
FIRST = "HAM10000_images_part_1/ISIC_0000000.jpg"
IMAGES = 28


def replace_row(folder: Path, number: int, **cells: str) -> None:
    """Change cells of one row of the table; the image files stay."""
    header, *rows = (folder / TABLE).read_text().splitlines()
    named = dict(zip(header.split(","), rows[number].split(","), strict=True)) | cells
    rows[number] = ",".join(named.values())
    write_table(folder / TABLE, rows)


def rewrite(folder: Path, change: Callable[[str], str | bytes]) -> None:
    content = change((folder / TABLE).read_text())
    (folder / TABLE).write_bytes(content if isinstance(content, bytes) else content.encode())


def store(folder: Path, image: Image.Image, kind: str = "JPEG", **options) -> None:
    image.save(folder / FIRST, kind, **options)


def png(width: int, height: int, extra: bytes = b"") -> bytes:
    """The head of a PNG that claims a size, and no pixels."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + extra + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    )


def turned() -> dict:
    exif = Image.Exif()
    exif[0x0112] = 6
    return {"exif": exif}


class Case(NamedTuple):
    """How the set is spoiled, the kind it is, images left when that kind is skipped and when it is fixed."""

    spoil: Callable[[Path], object]
    kind: str
    skipped: int | None = None
    fixed: int | None = None
    cell: tuple[str, str] | None = None


ROW_CASES = {
    "missing image file": Case(lambda f: (f / FIRST).unlink(), "missing_image", 27),
    "a link to nothing": Case(
        lambda f: ((f / FIRST).unlink(), (f / FIRST).symlink_to(f / "gone.jpg")), "missing_image", 27
    ),
    "a folder where the image should be": Case(
        lambda f: ((f / FIRST).unlink(), (f / FIRST).mkdir()), "missing_image", 27
    ),
    "zero bytes": Case(lambda f: (f / FIRST).write_bytes(b""), "empty_image", 27),
    "truncated JPEG": Case(lambda f: (f / FIRST).write_bytes((f / FIRST).read_bytes()[:-400]), "damaged_image", 27),
    "truncated PNG": Case(lambda f: (f / FIRST).write_bytes(encoded(picture(0), "PNG")[:-60]), "damaged_image", 27),
    "JPEG head only": Case(lambda f: (f / FIRST).write_bytes((f / FIRST).read_bytes()[:20]), "not_an_image", 27),
    "text under a .jpg name": Case(lambda f: (f / FIRST).write_text("404 Not Found"), "not_an_image", 27),
    "a PostScript program under a .jpg name": Case(
        lambda f: (f / FIRST).write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n"),
        "not_an_image",
        27,
    ),
    "decompression bomb, 12,000 x 12,000": Case(
        lambda f: (f / FIRST).write_bytes(png(12_000, 12_000)), "too_many_pixels", 27
    ),
    "decompression bomb beyond Pillow's own limit": Case(
        lambda f: (f / FIRST).write_bytes(png(60_000, 60_000)), "too_many_pixels", 27
    ),
    "compressed text bomb in a PNG": Case(
        lambda f: (f / FIRST).write_bytes(png(8, 8, text_chunk(b"zTXt", b"a\0\0" + zlib.compress(b"0" * 80_000_000)))),
        "damaged_image",
        27,
    ),
    "half a JPEG, closed": Case(
        lambda f: (f / FIRST).write_bytes((f / FIRST).read_bytes()[:-200] + b"\xff\xd9"), "damaged_image", 27
    ),
    "a strip": Case(lambda f: store(f, Image.new("RGB", (1, 500))), "bad_shape", 27),
    "two different files of one name": Case(
        lambda f: save(f / "elsewhere" / "ISIC_0000000.png", 9), "ambiguous_image", 27
    ),
    "path upwards in an id": Case(lambda f: replace_row(f, 0, image_id="../ISIC_0000000"), "bad_id", 27),
    "absolute path in an id": Case(lambda f: replace_row(f, 0, image_id="/etc/passwd"), "bad_id", 27),
    "backslashes in an id": Case(lambda f: replace_row(f, 0, image_id="..\\ISIC_0000000"), "bad_id", 27),
    "an id of two dots": Case(lambda f: replace_row(f, 0, image_id=".."), "bad_id", 27),
    "an empty id": Case(lambda f: replace_row(f, 0, image_id=""), "bad_id", 27),
    "the same row twice": Case(lambda f: append(f, ham_rows(1)[0]), "duplicate_id", 28),
    "one id with two labels": Case(
        lambda f: append(f, "HAM_0000099,ISIC_0000000,mel,histo,50,male,back"), "two_labels", 27
    ),
    "one lesion with two labels": Case(lambda f: replace_row(f, 0, dx="mel"), "two_diagnoses", 26),
    "unknown diagnosis code": Case(lambda f: replace_row(f, 0, dx="melanom"), "unknown_diagnosis", 27),
    "no diagnosis": Case(lambda f: replace_row(f, 0, dx=""), "unknown_diagnosis", 27),
    "no lesion": Case(lambda f: replace_row(f, 0, lesion_id=""), "no_lesion", 27, 28, ("lesion_id", "ISIC_0000000")),
    "age as text": Case(lambda f: replace_row(f, 0, age="forty"), "bad_age", 27, 28, ("age", "")),
    "age below zero": Case(lambda f: replace_row(f, 0, age="-5"), "bad_age", 27, 28, ("age", "")),
    "age of 200": Case(lambda f: replace_row(f, 0, age="200"), "bad_age", 27, 28, ("age", "")),
    "infinite age": Case(lambda f: replace_row(f, 0, age="inf"), "bad_age", 27, 28, ("age", "")),
    "sex by a letter": Case(lambda f: replace_row(f, 0, sex="F"), "unknown_sex", 27, 28, ("sex", "female")),
    "unknown word for sex": Case(lambda f: replace_row(f, 0, sex="??"), "unknown_sex", 27, 28, ("sex", "unknown")),
    "upper-case code": Case(lambda f: replace_row(f, 0, dx="AKIEC"), "untidy_text", 27, 28, ("dx", "akiec")),
    "spaces around a code": Case(lambda f: replace_row(f, 0, dx=" akiec "), "untidy_text", 27, 28, ("dx", "akiec")),
    "spaces around an id": Case(
        lambda f: replace_row(f, 0, image_id=" ISIC_0000000"), "untidy_text", 27, 28, ("image_id", "ISIC_0000000")
    ),
    "file names for ids": Case(
        lambda f: replace_row(f, 0, image_id="ISIC_0000000.jpg"), "untidy_text", 27, 28, ("image_id", "ISIC_0000000")
    ),
    "names of another format for ids": Case(
        lambda f: replace_row(f, 0, image_id="ISIC_0000000.HEIC"), "untidy_text", 27, 28, ("image_id", "ISIC_0000000")
    ),
    "upper-case sex": Case(lambda f: replace_row(f, 0, sex="Female"), "untidy_text", 27, 28, ("sex", "female")),
}


def encoded(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def text_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def append(folder: Path, row: str) -> None:
    rewrite(folder, lambda text: text + row + "\n")


@pytest.fixture
def spoilt(tmp_path, monkeypatch):
    """Makes a project on a spoilt set."""

    def make(spoil: Callable[[Path], object]) -> DataProject:
        folder = ham(tmp_path / "set")
        spoil(folder)
        return DataProject(tmp_path / "project", monkeypatch.chdir, data__source="ham10000", data__dir=folder)

    return make


@pytest.mark.parametrize("name", ROW_CASES)
def test_a_bad_row_or_image_stops_and_is_listed(spoilt, name):
    case = ROW_CASES[name]
    project = spoilt(case.spoil)
    message = project.fails("download", "prepare")
    assert case.kind in message
    assert "data/prepared/problems.csv" in message
    assert (case.kind, "stopped") in project.problems()
    assert {kind for kind, action in project.problems() if action == "stopped"} - {case.kind} <= {"missing_image"}
    assert project.written() == {"data/prepared/problems.csv"}


@pytest.mark.parametrize("name", ROW_CASES)
def test_a_bad_row_or_image_is_left_out_where_the_user_says_so(spoilt, name):
    case = ROW_CASES[name]
    project = spoilt(case.spoil)
    project.change(**{f"prepare__on_problem__{case.kind}": "skip", "prepare__on_problem__missing_image": "skip"})
    project.run("download", "prepare")
    assert len(project.labels()) == len(project.images()) == case.skipped
    assert (case.kind, "skipped") in project.problems()
    metrics = project.metrics("data")
    assert metrics["rows_left_out"] == metrics["rows_read"] - case.skipped
    assert metrics["problems"][case.kind]["skipped"] >= 1


@pytest.mark.parametrize("name", [name for name, case in ROW_CASES.items() if case.fixed])
def test_a_bad_cell_is_mended_where_there_is_an_honest_fix(spoilt, name):
    case = ROW_CASES[name]
    project = spoilt(case.spoil).change(**{f"prepare__on_problem__{case.kind}": "fix"})
    project.run("download", "prepare")
    labels = project.labels()
    assert len(labels) == case.fixed
    assert (case.kind, "fixed") in project.problems()
    column, value = case.cell
    assert str(labels[column].iloc[0]) == value


PIXEL_CASES = {
    "grayscale": ("other_pixels", lambda f: store(f, picture(0).convert("L"))),
    "CMYK": ("other_pixels", lambda f: store(f, picture(0).convert("CMYK"))),
    "16 bits": ("other_pixels", lambda f: store(f, Image.fromarray(np.full((36, 48), 30_000, np.uint16)), "PNG")),
    "palette": ("other_pixels", lambda f: store(f, picture(0).quantize(16), "PNG")),
    "alpha": ("other_pixels", lambda f: store(f, picture(0).convert("RGBA"), "PNG")),
    "one bit": ("other_pixels", lambda f: store(f, picture(0).convert("1"), "PNG")),
    "floating point": (
        "other_pixels",
        lambda f: store(f, Image.fromarray(np.full((9, 9), np.nan, np.float32)), "TIFF"),
    ),
    "an animation": (
        "several_frames",
        lambda f: store(f, picture(0), "PNG", save_all=True, append_images=[picture(1)]),
    ),
    "EXIF orientation": ("exif_rotation", lambda f: store(f, picture(0), **turned())),
    "PNG under a .jpg name": ("wrong_ending", lambda f: store(f, picture(0), "PNG")),
}


@pytest.mark.parametrize("name", PIXEL_CASES)
def test_an_unusual_image_is_put_right_and_said(spoilt, name):
    kind, spoil = PIXEL_CASES[name]
    project = spoilt(spoil)
    project.run("download", "prepare")
    assert len(project.images()) == IMAGES
    assert (kind, "fixed") in project.problems()
    assert {action for _, action in project.problems()} <= {"fixed", "noted"}
    project.change(**{f"prepare__on_problem__{kind}": "skip"}).run("prepare")
    assert len(project.images()) == len(project.labels()) == IMAGES - 1
    assert project.labels()["image_id"].iloc[0] == "ISIC_0000001"
    message = project.change(**{f"prepare__on_problem__{kind}": "stop"}).fails("prepare")
    assert kind in message


TABLE_CASES = {
    "no table": (lambda f: (f / TABLE).unlink(), "there is no HAM10000_metadata.csv"),
    "empty table": (lambda f: (f / TABLE).write_bytes(b""), "it is empty"),
    "a table in UTF-16": (lambda f: rewrite(f, lambda text: text.encode("utf-16")), "save it as UTF-8"),
    "an xlsx called .csv": (lambda f: (f / TABLE).write_bytes(b"PK\3\4\0\0\0"), "cannot be read as a table"),
    "a missing column": (
        lambda f: rewrite(f, lambda text: text.replace("dx,dx_type", "diagnosis,dx_type", 1)),
        "no column dx",
    ),
    "a column twice": (lambda f: rewrite(f, lambda text: text.replace("dx_type", "dx", 1)), "a column twice"),
    "a row with a cell too many": (lambda f: append(f, "a,b,c,d,e,f,g,h"), "line 30 has 8 cells, the header 7"),
    "a row that was cut off": (lambda f: append(f, "HAM_0000099,ISIC_00"), "line 30 has 2 cells"),
    "a quote that is never closed": (lambda f: append(f, '"HAM_1,ISIC_1,nv,histo,5,male,back'), "line 30"),
    "two different tables": (lambda f: write_table(f / "copy" / TABLE, ham_rows(4)), "several different tables"),
    "no archive": (lambda f: (f / "more.zip").write_bytes(b"PK\3\4 cut off"), "is not a whole zip archive"),
    "an archive with paths outside its folder": (lambda f: escape(f / "more.zip"), "more.zip"),
    "no image at all": (lambda f: [path.unlink() for path in f.rglob("*.jpg")], "there is no image"),
}


def escape(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../../ISIC_9999999.jpg", encoded(picture(1), "JPEG"))


@pytest.mark.parametrize("name", TABLE_CASES)
def test_a_set_that_cannot_be_read_is_refused_in_words(spoilt, name, tmp_path):
    spoil, words = TABLE_CASES[name]
    project = spoilt(spoil)
    assert words in project.fails("download", "prepare")
    assert {name for name in project.written() if not name.startswith("downloads/")} == set()
    assert not list(tmp_path.glob("*.jpg"))


HARMLESS = {
    "byte-order mark": lambda f: rewrite(f, lambda text: "\ufeff" + text),
    "CRLF": lambda f: rewrite(f, lambda text: text.replace("\n", "\r\n")),
    "semicolons": lambda f: rewrite(f, lambda text: text.replace(",", ";")),
    "quoted tabs": lambda f: rewrite(f, lambda text: text.replace(",", "\t").replace("back", '"back\t(upper)"')),
    "blank lines": lambda f: rewrite(f, lambda text: text.replace("\n", "\n\n")),
    "an eighth column": lambda f: rewrite(
        f,
        lambda text: "\n".join(f"{line},{'dataset' if not n else 'rosendahl'}" for n, line in enumerate(text.split())),
    ),
    "what macOS leaves": lambda f: save(f / "__MACOSX" / "ISIC_0000000.png") and save(f / "._ISIC_0000001.jpg"),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_is_only_unusual_is_read(spoilt, name):
    project = spoilt(HARMLESS[name])
    project.run("download", "prepare")
    labels = project.labels()
    assert labels["image_id"].tolist() == [f"ISIC_{number:07d}" for number in range(IMAGES)]
    assert labels["dx"].tolist() == [CODES[number // 2 % 7] for number in range(IMAGES)]
    assert {kind for kind, _ in project.problems()} == {"unexpected_count"}  # 28 images are a subset of HAM10000


def test_an_image_that_no_table_names_is_noted_and_not_used(spoilt):
    project = spoilt(lambda f: save(f / "HAM10000_images_part_1" / "extra.jpg", 99))
    project.run("download", "prepare")
    assert ("unlisted_image", "noted") in project.problems()
    assert len(project.images()) == IMAGES


def test_all_problems_of_table_and_images_come_in_one_report(spoilt):
    def spoil(folder):
        replace_row(folder, 4, age="200")
        replace_row(folder, 6, dx="what")
        (folder / FIRST).write_bytes(b"")
        (folder / "HAM10000_images_part_2/ISIC_0000001.jpg").write_text("x")

    project = spoilt(spoil)
    message = project.fails("download", "prepare")
    stopped = [kind for kind, action in project.problems() if action == "stopped"]
    assert sorted(stopped) == ["bad_age", "empty_image", "not_an_image", "unknown_diagnosis"]
    assert "4 problem(s) (bad_age 1, empty_image 1, not_an_image 1, unknown_diagnosis 1)" in message
    report = (project.folder / "data/prepared/problems.csv").read_text().splitlines()
    assert report[0] == "file,row,column,value,rule,kind,action"
    assert any(line.startswith(f"{TABLE},6,age,200,") for line in report)


def test_a_full_disk_is_refused_before_anything_is_written(spoilt, monkeypatch):
    project = spoilt(lambda f: None)
    project.run("download")
    monkeypatch.setattr("exp_tools.io.shutil.disk_usage", lambda path: type("Usage", (), {"free": 10_000})())
    message = project.fails("prepare")
    assert "28 images of 32x32" in message
    assert "86.1kB" in message or "86.1" in message
    assert project.written() == set()


def test_nothing_is_left_when_every_image_is_bad(spoilt):
    project = spoilt(lambda f: [path.write_bytes(b"") for path in f.rglob("*.jpg")])
    message = project.change(prepare__on_problem__empty_image="skip").fails("download", "prepare")
    assert "no image of HAM10000 is left: none of 28 can be used" in message
    assert not (project.folder / "data/prepared/images.npy").exists()


def test_the_users_folder_is_never_emptied_nor_changed(spoilt, tmp_path):
    project = spoilt(lambda f: None)
    before = {path: path.read_bytes() for path in (tmp_path / "set").rglob("*") if path.is_file()}
    project.run("download", "prepare")
    assert {path: path.read_bytes() for path in (tmp_path / "set").rglob("*") if path.is_file()} == before
    inside = ham(project.folder / "data" / "raw" / "mine")
    for folder in (inside, project.folder / "data", project.folder):
        assert "overlap" in project.change(data__dir=folder).fails("download")
    assert len(list(inside.rglob("*.jpg"))) == IMAGES


def test_a_report_that_was_written_before_stays_true(spoilt, tmp_path):
    """A second run after mending: the old list of problems does not outlive its problems."""
    project = spoilt(lambda f: (f / FIRST).write_bytes(b""))
    project.fails("download", "prepare")
    save(tmp_path / "set" / FIRST, 0)
    project.run("download", "prepare")
    assert {kind for kind, _ in project.problems()} == {"unexpected_count"}
    assert json.loads((project.folder / "metrics/data.json").read_text())["rows_left_out"] == 0


def test_the_corpus_is_as_large_as_it_says():
    assert len(ROW_CASES) + len(PIXEL_CASES) + len(TABLE_CASES) + len(HARMLESS) >= 60
