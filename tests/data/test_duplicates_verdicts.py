"""verdicts/duplicates.csv: what a person says of a pair wins over the list and the search, in prepare and external."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
from helpers.datasets import ROOT, DataProject, ham, save, write_table

from exp_tools.data.duplicates.groups import known_pairs
from exp_tools.data.duplicates.pairs import without_known_images
from exp_tools.data.duplicates.verdicts import COLUMNS, read_verdicts, with_verdicts
from exp_tools.errors import UserError
from exp_tools.project import VERDICTS

HEADER = "image_id,other_image_id,same,note"


def written(folder: Path, *rows: str) -> Path:
    return write_table(folder / VERDICTS, list(rows), HEADER)


def test_the_file_in_git_has_the_header_only():
    assert (ROOT / VERDICTS).read_text(encoding="utf-8").splitlines()[0] == HEADER
    assert list(read_verdicts(ROOT / VERDICTS)) == COLUMNS


def test_verdicts_are_read(tmp_path):
    verdicts = read_verdicts(written(tmp_path, "a, b ,Yes,", 'b,c,no,"other arm, older"'))
    assert verdicts.to_numpy().tolist() == [["a", "b", "yes", ""], ["b", "c", "no", "other arm, older"]]
    assert read_verdicts(tmp_path / "none.csv").empty


def test_bad_rows_are_one_error_that_names_each(tmp_path):
    rows = ["a,b,yes,", "b,a,no,", "c,c,yes,", "d,,no,", "e,f,maybe,", "e,f,,", "g,h,yes,", "h,i,yes,", "i,g,no,"]
    with pytest.raises(UserError) as raised:
        read_verdicts(written(tmp_path, *rows))
    for said in (
        "line 3 says no of b and a, line 2 says yes",
        "line 4 pairs c with itself",
        "line 5 names one image only",
        "line 6: same is 'maybe', it must be yes or no",
        "line 7: same is '', it must be yes or no",
        "line 10 says no of g and i, which the rows that say yes unite",
        "Correct these rows, or take them out",
    ):
        assert said in str(raised.value)
    with pytest.raises(UserError, match="has no column same"):
        read_verdicts(write_table(tmp_path / "v.csv", ["a,b"], "image_id,other_image_id"))


def test_yes_accepts_and_no_takes_back(tmp_path):
    pairs = pd.DataFrame(
        [("a", "b", 30, True), ("c", "d", 7, False), ("e", "f", 20, True)],
        columns=["image_id_1", "image_id_2", "inliers", "accepted"],
    ).assign(identical=False, size=300, judged="geometry")
    verdicts = read_verdicts(written(tmp_path, "b,a,no,", "c,d,yes,", "g,h,yes,", "g,gone,yes,", "f,g,no,"))
    judged = with_verdicts(pairs, verdicts, set("abcdefgh"))
    assert judged[["image_id_1", "image_id_2", "accepted", "judged"]].to_numpy().tolist() == [
        ["a", "b", False, "verdict"],
        ["c", "d", True, "verdict"],
        ["e", "f", True, "geometry"],
        ["g", "h", True, "verdict"],
    ]


@pytest.fixture
def project(tmp_path, monkeypatch):
    folder = ham(tmp_path / "ham")
    images = sorted(folder.rglob("*.jpg"))
    shutil.copy(images[0], images[-1])  # the same bytes under two ids
    return DataProject(
        tmp_path / "project",
        monkeypatch.chdir,
        data__source="ham10000",
        data__dir=folder,
        prepare__duplicates="known",
        prepare__on_problem__unexpected_count="note",
    )


def groups_of(project: DataProject) -> dict[str, str]:
    return project.labels().set_index("image_id")["group_id"].to_dict()


def test_prepare_unites_and_separates_as_the_verdicts_say(project, tmp_path, capsys):
    project.run("download", "prepare")
    lesions = project.labels().drop_duplicates("lesion_id")["image_id"].tolist()
    pairs = pd.read_csv(project.folder / "data/prepared/duplicates.csv")
    (one, other) = pairs.loc[pairs["identical"], ["image_id_1", "image_id_2"]].iloc[0]
    before = groups_of(project)
    first, second = next((a, b) for a in lesions for b in lesions if len({before[a], before[b], before[one]}) == 3)
    assert before[one] == before[other]
    written(project.folder, f"{other},{one},no,", f"{first},{second},yes,", "elsewhere,too,yes,")
    project.run("prepare")
    after = groups_of(project)
    assert after[one] != after[other]
    assert after[first] == after[second]
    listed = pd.read_csv(project.folder / "data/prepared/duplicates.csv").set_index("image_id_1")
    assert listed.loc[[one, first], "judged"].tolist() == ["verdict", "verdict"]
    assert "warning" not in capsys.readouterr().err

    same_lesion = project.labels()[project.labels()["lesion_id"].duplicated(keep=False)].sort_values("lesion_id")
    one, other = same_lesion["image_id"].iloc[:2]
    written(project.folder, f"{one},{other},no,")
    project.run("prepare")
    assert f"says no of {one} and {other}, which stay together" in capsys.readouterr().err
    written(project.folder, f"{one},{other},perhaps,")
    assert "line 2: same is 'perhaps'" in project.fails("prepare")


def rows_of(source: str, image_ids: list[str]) -> pd.DataFrame:
    empty = {name: [""] * len(image_ids) for name in ("file", "group")}
    return pd.DataFrame(empty | {"source": source, "image_id": image_ids, "lesion_id": image_ids})


def test_external_follows_the_verdicts_too(tmp_path):
    one, two = known_pairs("ham10000").loc[0, ["image_id_1", "image_id_2"]]
    main, external = rows_of("ham10000", [one, "M"]), rows_of("table", [two, "X", "Y"])
    cases = {(): ["X", "Y"], (f"{two},{one},no,",): [two, "X", "Y"], ("Y,M,yes,",): ["X"]}
    for rows, left in cases.items():
        verdicts = read_verdicts(written(tmp_path, *rows))
        kept, _ = without_known_images(external, main.iloc[:0], main, "known", verdicts=verdicts)
        assert kept["image_id"].tolist() == left


def test_a_found_pair_of_two_sets_is_taken_back(tmp_path):
    for name in ("M", "X"):
        save(tmp_path / f"{name}.png", 1)
    main, external = rows_of("ham10000", ["M"]), rows_of("table", ["X"])
    main["file"], external["file"] = str(tmp_path / "M.png"), str(tmp_path / "X.png")
    for rows, left in (((), []), (("M,X,no,",), ["X"])):
        verdicts = read_verdicts(written(tmp_path, *rows))
        kept, _ = without_known_images(external, main, main, "known", verdicts=verdicts)
        assert kept["image_id"].tolist() == left


def test_one_damaged_external_image_does_not_stop_the_search(project, tmp_path):
    project.run("download", "prepare")
    save(tmp_path / "clinic" / "mel" / "a.png", 205)
    save(tmp_path / "clinic" / "nv" / "b.png", 206)
    damaged = tmp_path / "clinic" / "mel" / "c.png"
    whole = (tmp_path / "clinic" / "mel" / "a.png").read_bytes()
    damaged.write_bytes(whole[: len(whole) // 2])
    sets = {"clinic": {"source": "folder", "dir": str(tmp_path / "clinic")}}
    project.change(data__external=sets, prepare__duplicates="search")
    assert "damaged" in project.fails("external")
    project.change(prepare__on_problem__damaged_image="skip").run("external")
    assert project.metrics("external")["clinic"]["images"] == 2
