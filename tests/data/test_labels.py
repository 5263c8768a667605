"""The label table is checked whole: every fault with its file, row and remedy."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from exp_tools.data.labels.issues import Problem, apply_actions, decide, stop_on, write_report
from exp_tools.data.labels.table import lesions_known, typed_labels
from exp_tools.data.labels.validate import check_counts, check_labels, complete
from exp_tools.data.sources import ham10000
from exp_tools.data.sources.registry import read_source, spec_of
from exp_tools.data.sources.tables import read_text_table, require_columns
from exp_tools.errors import UserError
from exp_tools.taxonomy import DIAGNOSES

HEADER = "lesion_id,image_id,dx,dx_type,age,sex,localization"
TABLE = "HAM10000_metadata.csv"


@pytest.fixture
def raw(tmp_path):
    """A folder with three images and a function that writes a table beside them and reads it."""
    for number in range(1, 4):
        (tmp_path / f"I{number}.jpg").write_bytes(b"x")

    def read(*rows: str) -> pd.DataFrame:
        (tmp_path / TABLE).write_text("\n".join([HEADER, *rows]) + "\n", encoding="utf-8")
        return read_source("ham10000", tmp_path)

    return read


def check(table: pd.DataFrame) -> list[Problem]:
    return check_labels(table, tuple(DIAGNOSES))


def faults(table: pd.DataFrame) -> list[tuple[str, int | None, str]]:
    return [(problem.kind, problem.row, problem.column) for problem in check(table)]


def test_a_good_table_has_no_fault(raw):
    assert faults(raw("L1,I1,nv,histo,45.0,male,back", "L1,I2,nv,follow_up,,,", "L2,I3,mel,histo,80,female,face")) == []


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ("L1,I1,melanoma,histo,45,male,back", ("unknown_diagnosis", 2, "dx")),
        ("L1,I1,NV,histo,45,male,back", ("untidy_text", 2, "dx")),
        ("L1,I1,,histo,45,male,back", ("unknown_diagnosis", 2, "dx")),
        ("L1,I1,nv,histo,old,male,back", ("bad_age", 2, "age")),
        ("L1,I1,nv,histo,-5,male,back", ("bad_age", 2, "age")),
        ("L1,I1,nv,histo,200,male,back", ("bad_age", 2, "age")),
        ("L1,I1,nv,histo,inf,male,back", ("bad_age", 2, "age")),
        ("L1,I1,nv,histo,45,m,back", ("unknown_sex", 2, "sex")),
        ("L1,I9,nv,histo,45,male,back", ("missing_image", 2, "image_id")),
        (",I1,nv,histo,45,male,back", ("no_lesion", 2, "lesion_id")),
    ],
)
def test_each_fault_is_found_where_it_stands(raw, row, fault):
    assert faults(raw(row, "L2,I2,nv,histo,45,male,back")) == [fault]


@pytest.mark.parametrize("image_id", ["../secret", "/etc/passwd", "a\\b", ".."])
def test_an_id_never_leads_out_of_the_folder(raw, image_id):
    found = check(raw(f"L1,{image_id},nv,histo,45,male,back"))
    assert "bad_id" in {problem.kind for problem in found}


def test_doubled_ids_and_lesions_with_two_diagnoses(raw):
    table = raw("L1,I1,nv,histo,45,male,back", "L1,I2,mel,histo,45,male,back", "L3,I1,nv,histo,45,male,back")
    assert faults(table) == [("two_diagnoses", 2, "dx"), ("two_diagnoses", 3, "dx"), ("duplicate_id", 4, "image_id")]


def test_an_image_with_two_labels_is_named_in_every_row(raw):
    table = raw("L1,I1,nv,histo,45,male,back", "L1,I1,mel,histo,45,male,back", "L3,I3,nv,histo,45,male,back")
    assert faults(table) == [("two_labels", 2, "dx"), ("two_labels", 3, "dx")]


def test_all_faults_come_in_one_error_with_row_and_remedy(raw, tmp_path):
    table = raw("L1,I1,nevus,histo,45,male,back", "L2,I7,nv,histo,200,male,back")
    policy = dict.fromkeys(("unknown_diagnosis", "bad_age", "missing_image"), "stop")
    problems = decide(check(table), policy)
    with pytest.raises(UserError) as caught:
        stop_on(problems, tmp_path / "problems.csv")
    message = str(caught.value)
    assert "3 problem(s) (bad_age 1, missing_image 1, unknown_diagnosis 1)" in message
    assert "HAM10000_metadata.csv, row 2, dx: diagnosis 'nevus' is unknown; known: akiec, bcc" in message
    assert "row 3, age: age '200' is not a number from 0 to 120" in message
    assert "no image file for 'I7'" in message
    assert f"listed in {tmp_path / 'problems.csv'}" in message


def test_actions_change_the_table_as_they_say(raw):
    table = raw("L1,I1,NV,histo,300,male,back", "L2,I7,nv,histo,20,male,back", "L3,I3,mel,histo,20,male,back")
    problems = decide(check(table), {"untidy_text": "fix", "bad_age": "fix", "missing_image": "skip"})
    kept = apply_actions(table, problems)
    assert kept.index.tolist() == [0, 2]
    assert kept.loc[0, ["dx", "age"]].tolist() == ["nv", ""]
    assert table.loc[0, "dx"] == "NV"


def test_a_report_is_written_without_problems_too(tmp_path):
    write_report(tmp_path / "p.csv", [])
    assert (tmp_path / "p.csv").read_text() == "file,row,column,value,rule,kind,action\n"
    write_report(tmp_path / "p.csv", [Problem("bad_age", "t.csv", 4, "age", "x", "no, number", 2, "", "fixed")])
    assert (tmp_path / "p.csv").read_text().splitlines()[1] == 't.csv,4,age,x,"no, number",bad_age,fixed'


def test_a_subset_is_noted_and_a_wrong_whole_is_a_problem(raw):
    table = raw("L1,I1,nv,histo,45,male,back", "L1,I2,nv,histo,45,male,back", "L3,I3,mel,histo,45,male,back")
    expected = {"images": 3, "lesions": 2, "dx": {"nv": 2, "mel": 1}}
    assert check_counts(table, expected, "set") == []
    (subset,) = check_counts(table, expected | {"images": 4}, "set")
    assert (subset.action, subset.kind) == ("noted", "unexpected_count")
    (wrong,) = check_counts(table, expected | {"dx": {"nv": 1, "mel": 1}}, "set")
    assert (wrong.action, wrong.value) == ("", "2")
    assert check_counts(table, {"images": (3, 4)}, "set") == []


def test_a_lesion_that_is_called_like_its_image_is_one_nobody_knows(raw):
    known = typed_labels(raw("L1,I1,nv,histo,45,male,back", "L2,I2,nv,histo,45,male,back"))
    assert lesions_known(known)
    assert not lesions_known(typed_labels(raw("L1,I1,nv,histo,45,male,back", "I2,I2,nv,histo,45,male,back")))


def test_a_missing_column_is_named(tmp_path):
    (tmp_path / TABLE).write_text("image_id,dx\nI1,nv\n")
    with pytest.raises(UserError, match="no column lesion_id, dx_type, age, sex, localization"):
        ham10000.read(tmp_path)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_delimiters_marks_and_line_ends(tmp_path, separator, start, end):
    lines = [separator.join(cells) for cells in (["image_id", "dx"], ["I1", "nv"], ["I2", "mel"])]
    (tmp_path / "t.csv").write_bytes((start + end.join(lines) + end).encode())
    table = read_text_table(tmp_path / "t.csv")
    require_columns(table, ["image_id", "dx"], "t.csv")
    assert table["dx"].to_dict() == {2: "nv", 3: "mel"}


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00a", b'a,b\n1,2,3\n"4'])
def test_a_file_that_is_no_table_is_refused(tmp_path, content):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(UserError, match=r"t\.csv"):
        read_text_table(tmp_path / "t.csv")


def test_typed_labels_name_what_is_missing(raw):
    labels = typed_labels(raw("L1,I1,nv,,,,", "L2,I2,mel,histo,50,male,back"))
    assert np.isnan(labels["age"][0])
    assert labels["age"][1] == 50
    assert labels.loc[0, ["dx_type", "sex", "localization"]].tolist() == ["unknown"] * 3
    assert labels["group"].tolist() == ["", ""]


@pytest.mark.parametrize(
    ("kinds", "advice"),
    [
        (["bad_age"], "-S prepare.on_problem.bad_age=fix"),
        (["missing_image", "missing_image", "no_lesion"], "-S prepare.on_problem.no_lesion=fix"),
        (["missing_image", "damaged_image", "missing_image"], "missing_image=skip, which leaves 2 out"),
        (["unexpected_count"], "-S prepare.on_problem.unexpected_count=note"),
        (["unknown_diagnosis"], "Fix the data: correct these diagnoses in the table; skipping them would lose whole"),
    ],
)
def test_the_advice_mends_before_it_loses(kinds, advice):
    problems = [Problem(kind, "t.csv", n, "", "", "wrong", n, action="stopped") for n, kind in enumerate(kinds)]
    with pytest.raises(UserError) as caught:
        stop_on(problems, Path("problems.csv"))
    assert advice in str(caught.value)


@pytest.mark.parametrize("word", ["NA", " nan ", "NULL", "None", "-", "n/a", "?", "Not available", "#N/A"])
def test_words_for_nothing_are_no_values(word):
    """Neither a class, nor one giant lesion, nor a site."""
    rows = {"image_id": [f"i{n}" for n in range(6)], "lesion_id": [f"l{n}" for n in range(6)], "dx": ["nv", "mel"] * 3}
    table = pd.DataFrame(rows | {"file": "x", "table": "t.csv", "sex": word, "age": word, "localization": word})
    table.loc[0, "dx"] = word
    table.loc[1:2, "lesion_id"] = word
    checked = complete(table)
    found = [(problem.kind, problem.place) for problem in check_labels(checked, None)]
    assert found == [("unknown_diagnosis", 0), ("no_lesion", 1), ("no_lesion", 2)]
    labels = typed_labels(checked)
    assert set(labels["sex"]) == set(labels["localization"]) == {"unknown"}
    assert labels["age"].isna().all()


def test_a_message_about_a_giant_lesion_stays_short():
    rows = {"image_id": [f"i{n}" for n in range(3000)], "dx": [f"d{n % 30}" for n in range(3000)]}
    table = complete(pd.DataFrame(rows | {"lesion_id": "same", "file": "x", "table": "t.csv"}))
    rules = {problem.rule for problem in check_labels(table, None) if problem.kind == "two_diagnoses"}
    assert len(rules) == 1
    (rule,) = rules
    assert rule.endswith("d19 in row 19 (of 3,000 rows); a lesion has one")


def test_the_real_table_is_as_published(real_data, tmp_path):
    (tmp_path / TABLE).write_bytes((real_data / TABLE).read_bytes())
    table = read_source("ham10000", tmp_path).assign(file="x")
    assert check(table) == []
    assert check_counts(table, spec_of("ham10000").counts, "HAM10000") == []
    labels = typed_labels(table)
    assert labels["dx"].value_counts().to_dict() == {
        "nv": 6705,
        "mel": 1113,
        "bkl": 1099,
        "bcc": 514,
        "akiec": 327,
        "vasc": 142,
        "df": 115,
    }
    assert (len(labels), labels["lesion_id"].nunique(), int(labels["age"].isna().sum())) == (10015, 7470, 57)
    assert labels["sex"].value_counts().to_dict() == {"male": 5406, "female": 4552, "unknown": 57}
