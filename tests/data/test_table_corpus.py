"""Tables as people have them: each is read, or refused in a sentence that names the file and what to do.

A case is the table's bytes, or a name and bytes; the answer is the diagnoses that come out, or words of the message.
One case of each kind runs always, the others with the sweeps.
"""

import gzip
import io

import pandas as pd
import pytest
from helpers.datasets import DataProject, save
from openpyxl import Workbook

IDS = ["a0", "a1", "a2", "a3", "a4", "a5"]
GOOD = ["mel", "nv", "nv", "mel", "nv", "nv"]
HEADER = "image_id,dx,lesion_id,age,sex"
ROWS = [f"{name},{code},L{n},{40 + n},female" for n, (name, code) in enumerate(zip(IDS, GOOD, strict=True))]
TEXT = "\n".join([HEADER, *ROWS]) + "\n"


def changed(number: int, **cells: str) -> str:
    """The table with other cells in one row."""
    named = dict(zip(HEADER.split(","), ROWS[number].split(","), strict=True)) | cells
    return "\n".join([HEADER, *ROWS[:number], ",".join(named.values()), *ROWS[number + 1 :]]) + "\n"


def every(**cells: str) -> str:
    """The table with the same cell in every row."""
    rows = []
    for row in ROWS:
        rows.append(",".join((dict(zip(HEADER.split(","), row.split(","), strict=True)) | cells).values()))
    return "\n".join([HEADER, *rows]) + "\n"


def workbook(rows: list[list], sheet: str = "Sheet1", before: int = 0) -> bytes:
    book = Workbook()
    book.active.title = sheet
    for _ in range(before):
        book.active.append([])
    for row in rows:
        book.active.append(row)
    packed = io.BytesIO()
    book.save(packed)
    return packed.getvalue()


CELLS = [line.split(",") for line in TEXT.splitlines()]
NAN_ROWS = TEXT.replace("40", "NA").replace("41", "nan").replace("42", "NULL").replace("43", "None").replace("44", "-")

READ = {
    "delimiters": {
        "commas": TEXT,
        "semicolons": TEXT.replace(",", ";"),
        "tabs": TEXT.replace(",", "\t"),
        "a tab table called .tsv": ("labels.tsv", TEXT.replace(",", "\t").encode()),
        "a tab table called .tab": ("labels.tab", TEXT.replace(",", "\t").encode()),
        "everything in quotes": "\n".join(",".join(f'"{cell}"' for cell in row) for row in CELLS),
        "commas in quotes": TEXT.replace("female", '"female"'),
    },
    "encodings and line ends": {
        "byte-order mark": "\ufeff" + TEXT,
        "CRLF": TEXT.replace("\n", "\r\n"),
        "no line end at the end": TEXT.rstrip("\n"),
        "blank lines": TEXT.replace("\n", "\n\n"),
        "lines of delimiters alone": TEXT + ",,,,\n,,,,\n",
        "umlauts elsewhere": TEXT.replace("sex\n", "sex,hôpital\n").replace("female\n", "female,Zürich\n"),
        "spaces in the header": TEXT.replace("image_id,dx", " image_id , dx"),
    },
    "kinds of files": {
        "gzip": ("labels.csv.gz", gzip.compress(TEXT.encode())),
        "a workbook": ("labels.xlsx", workbook(CELLS)),
        "a workbook with numbers": (
            "labels.xlsx",
            workbook([CELLS[0], *([*r[:3], float(r[3]), r[4]] for r in CELLS[1:])]),
        ),
        "a workbook that begins lower down": ("labels.xlsx", workbook(CELLS, before=2)),
        "a sheet of another name": ("labels.xlsx", workbook(CELLS, sheet="Tabelle1")),
        "capitals in the ending": ("LABELS.CSV", TEXT.encode()),
    },
    "words for nothing": {
        "ages": NAN_ROWS,
        "sexes": every(sex="NA"),
        "sexes as a dash": every(sex="-"),
        "ages with .0": every(age="45.0"),
    },
    "names": {
        "file names": "\n".join([HEADER, *(row.replace(",", ".png,", 1) for row in ROWS)]),
        "paths": "\n".join([HEADER, *("pics/" + row for row in ROWS)]),
        "paths of Windows": "\n".join([HEADER, *("pics\\" + row for row in ROWS)]),
        "names of diagnoses": TEXT.replace(",mel,", ",melanoma metastasis,").replace(",nv,", ",naevus,"),
        "other order of columns": "\n".join(",".join(reversed(row)) for row in CELLS),
        "further columns": "\n".join(",".join([*row, "x"]) for row in CELLS).replace("sex,x", "sex,hospital"),
        "a nameless column of row numbers": "\n".join(
            ",".join([str(n) if n else "", *row]) for n, row in enumerate(CELLS)
        ),
    },
}

REFUSED = {
    "not a table": {
        "empty": ("", "labels.csv is empty"),
        "blank": ("\n \n", "labels.csv is empty"),
        "UTF-16": (TEXT.encode("utf-16"), "save it as CSV in UTF-8"),
        "UTF-16 without a mark": (TEXT.encode("utf-16-le"), "save it as CSV in UTF-8"),
        "Windows-1252": (TEXT.replace("female", "süß").encode("cp1252"), "is not UTF-8"),
        "a workbook called .csv": (workbook(CELLS), "save it as CSV in UTF-8"),
        "an old workbook": (("labels.xls", b"\xd0\xcf\x11\xe0" * 20), "labels.xls"),
        "OpenDocument": (("labels.ods", b"PK\3\4" * 20), "labels.ods"),
        "a damaged workbook": (("labels.xlsx", b"PK\3\4" * 20), "labels.xlsx"),
        "an empty workbook": (("labels.xlsx", workbook([])), "labels.xlsx"),
        "damaged gzip": (("labels.csv.gz", gzip.compress(TEXT.encode())[:-20]), "labels.csv.gz"),
        "a picture": (b"\x89PNG\r\n\x1a\n\0\0", "labels.csv"),
    },
    "header": {
        "none": ("\n".join(ROWS), "has no column image_id"),
        "header alone": (HEADER + "\n", "labels.csv has a header and no row"),
        "comment lines": ("# made by hand\n" + TEXT, "begins with a comment"),
        "a title line": ("My labels\n" + TEXT, "has no column image_id, dx"),
        "capitals": (TEXT.replace("image_id,dx", "Image_ID,DX"), "Image_ID should be image_id"),
        "another name": (TEXT.replace("image_id", "image"), "has no column image_id"),
        "a column twice": (TEXT.replace(",age,", ",dx,"), "names a column twice"),
        "trailing commas in the header": (TEXT.replace("sex\n", "sex,,\n"), "labels.csv"),
    },
    "rows": {
        "trailing commas in rows": (TEXT.replace("female\n", "female,\n"), "line 2 has 6 cells, the header 5"),
        "a short row": (TEXT + "a6,nv\n", "line 8 has 2 cells"),
        "a quote that is not closed": (TEXT + '"a6,nv,L9,40,male\n', "line 8"),
        "a decimal comma": (TEXT.replace("40,", "40,5,"), "line 2 has 6 cells"),
        "an empty id": (changed(0, image_id=""), "bad_id"),
        "an id upwards": (changed(0, image_id="../a0"), "bad_id"),
        "an absolute path": (changed(0, image_id="/etc/passwd"), "bad_id"),
        "a drive of Windows": (changed(0, image_id="C:\\a0.png"), "bad_id"),
        "a NUL": (TEXT.replace("a0", "a\0"), "labels.csv"),
        "an id twice": (TEXT + ROWS[0] + "\n", "duplicate_id"),
        "an id with two labels": (TEXT + ROWS[0].replace("mel", "nv") + "\n", "two_labels"),
        "a lesion with two labels": (changed(1, lesion_id="L0"), "two_diagnoses"),
        "no diagnosis": (changed(0, dx=""), "unknown_diagnosis"),
        "NA as diagnosis": (changed(0, dx="NA"), "unknown_diagnosis"),
        "no lesion": (changed(0, lesion_id="None"), "no_lesion"),
        "age as text": (changed(0, age="forty"), "bad_age"),
        "age below zero": (changed(0, age="-1"), "bad_age"),
        "age of 200": (changed(0, age="200"), "bad_age"),
        "sex by a number": (changed(0, sex="1"), "unknown_sex"),
        "no such image": (changed(0, image_id="b9"), "missing_image"),
        "a code in capitals": (changed(0, dx="MEL"), "untidy_text"),
        "a blank behind a code": (changed(0, dx="mel "), "untidy_text"),
    },
}


def cases(kinds: dict) -> list:
    """The first case of each kind, and the others as sweeps."""
    return [
        pytest.param(case, id=f"{kind}: {name}", marks=[pytest.mark.sweep] if place else [])
        for kind, named in kinds.items()
        for place, (name, case) in enumerate(named.items())
    ]


@pytest.fixture
def project(tmp_path, monkeypatch):
    def make(table) -> DataProject:
        name, content = table if isinstance(table, tuple) else ("labels.csv", table)
        for number, image in enumerate(IDS):
            save(tmp_path / "set" / "pics" / f"{image}.png", number)
        (tmp_path / "set" / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return DataProject(tmp_path / "project", monkeypatch.chdir, data__source="table", data__dir=tmp_path / "set")

    return make


@pytest.mark.parametrize("table", cases(READ))
def test_a_table_that_is_only_unusual_is_read(project, table):
    made = project(table)
    made.run("download", "prepare")
    labels = made.labels()
    assert labels["image_id"].tolist() == IDS
    assert labels["dx"].tolist() == GOOD
    assert pd.to_numeric(labels["age"]).dropna().between(40, 45).all()
    assert set(labels["sex"]) <= {"female", "unknown"}
    assert made.problems() == []


@pytest.mark.parametrize("case", cases(REFUSED))
def test_a_table_that_is_wrong_is_refused_in_words(project, case):
    table, words = case
    made = project(table)
    said = made.fails("download", "prepare")
    assert words in said
    assert "labels" in said.lower() or "header" in words or "left" in said
    assert made.written() <= {"data/prepared/problems.csv"}


def test_the_corpus_is_as_large_as_it_says():
    assert sum(len(named) for kinds in (READ, REFUSED) for named in kinds.values()) >= 70
