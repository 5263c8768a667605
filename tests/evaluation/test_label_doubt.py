"""`exp-tools labels`: swapped labels are found, by lesion, and a person decides."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import yaml
from helpers.project import ROOT
from PIL import Image

from exp_tools.cli import main as cli
from exp_tools.cli.labels import of_study
from exp_tools.data.label_verdicts import judge_labels, read_label_verdicts
from exp_tools.errors import UserError
from exp_tools.evaluation.label_doubt import rank
from exp_tools.evaluation.label_doubt.rank import COLUMNS, rank_labels
from exp_tools.evaluation.label_doubt.sheets import (
    given_diagnoses,
    is_not_judged,
    packed_pictures,
    to_judge,
    write_proposal,
)
from exp_tools.evaluation.predictions import prediction_table, read_predictions
from exp_tools.evaluation.probabilities import Calibration
from exp_tools.io import write_csv
from exp_tools.studies import members
from exp_tools.studies.members import Standing

pytest.importorskip("cleanlab")
CODES = ["akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"]
SHARES = [0.033, 0.051, 0.11, 0.0115, 0.111, 0.67, 0.0135]
"""Of the classes in HAM10000."""


def simulated(seed: int, *, lesions: int = 1000, skill: float = 4.0, swapped: float = 0.03):
    """Predictions of one or two images per lesion by a model that knows nothing of a label, some of which are wrong.

    Logits are Gaussian around `skill` for the true class: 4 gives a balanced accuracy of about 0.8. Returns the table
    and the lesions whose given label is not the true one.
    """
    generator = np.random.default_rng(seed)
    truth = generator.choice(7, lesions, p=SHARES)
    images = np.repeat(np.arange(lesions), generator.integers(1, 3, lesions))
    logits = generator.normal(0, 1, (len(images), 7)) + skill * np.eye(7)[truth[images]]
    logits += np.log(SHARES)
    wrong = generator.choice(lesions, round(swapped * lesions), replace=False)
    given = truth.copy()
    given[wrong] = (truth[wrong] + generator.integers(1, 7, len(wrong))) % 7
    names = [f"L{number:04}" for number in range(lesions)]
    labels = pd.DataFrame(
        {
            "image_id": [f"I{number:05}" for number in range(len(images))],
            "lesion_id": [names[number] for number in images],
            "group_id": [names[number] for number in images],
            "source": "ham10000",
            "dx": np.array(CODES)[given[images]],
        }
    )
    table = prediction_table(labels, "test", logits, CODES, Calibration.none(7))
    return table, {names[number] for number in wrong}


def recall(ranking: pd.DataFrame, planted: set[str]) -> float:
    """Share of the planted lesions among the first twice as many."""
    first = ranking[ranking["rank"] <= 2 * len(planted)]["lesion_id"]
    return len(planted & set(first)) / len(planted)


def test_swapped_labels_are_found_among_the_first_twice_as_many():
    found = []
    for seed in range(5):
        table, planted = simulated(seed)
        found.append(recall(rank_labels(table, CODES), planted))
    assert np.mean(found) >= 0.95
    assert min(found) >= 0.9
    table, planted = simulated(9, skill=0.0)  # a model that knows the shares of the classes alone is no help
    assert recall(rank_labels(table, CODES), planted) < 0.6


def test_a_lesion_is_one_decision_and_the_ranking_is_that_of_its_mean_probability():
    table, _ = simulated(1, lesions=200)
    ranking = rank_labels(table, CODES)
    assert list(ranking) == COLUMNS
    assert sorted(ranking["image_id"]) == sorted(table["image_id"])
    probabilities = table[[f"p_{code}" for code in CODES]].to_numpy()
    own = probabilities[np.arange(len(table)), table["dx"].map(CODES.index)]
    mean = table.assign(own=own).groupby("lesion_id")["own"].mean().sort_values(kind="stable")
    assert ranking.drop_duplicates("lesion_id")["lesion_id"].tolist() == mean.index.tolist()
    assert ranking.drop_duplicates("lesion_id")["self_confidence"].to_numpy() == pytest.approx(mean.to_numpy())
    assert ranking.groupby("lesion_id")["rank"].nunique().eq(1).all()
    best = table.groupby("lesion_id")[[f"p_{code}" for code in CODES]].mean().idxmax(axis=1).str.removeprefix("p_")
    assert (ranking["suggested"] == ranking["lesion_id"].map(best).where(lambda s: s != ranking["dx"], "")).all()
    pd.testing.assert_frame_equal(rank_labels(table.sample(frac=1, random_state=0), CODES), ranking)


def test_what_was_judged_and_what_has_no_suggestion_is_not_proposed_again():
    ranking = rank_labels(simulated(2)[0], CODES)
    proposed = to_judge(ranking, set(), 10**6)
    assert (proposed["suggested"] != "").all()
    assert proposed["rank"].is_monotonic_increasing
    assert proposed["lesion_id"].is_unique
    lesion = proposed["lesion_id"].iloc[0]
    other = ranking[ranking["lesion_id"] == lesion]["image_id"].iloc[-1]
    assert lesion not in set(to_judge(ranking, {other}, 10**6)["lesion_id"])
    assert len(to_judge(ranking, set(), 7)) == 7


@pytest.fixture
def folds(tmp_path, monkeypatch):
    """A project of three folds' predictions, and packed pictures of all images but the last."""
    table, _ = simulated(3, lesions=120)
    lesion = table["lesion_id"].str[1:].astype(int)
    for fold in range(3):
        write_csv(tmp_path / f"fold{fold}.csv", table[lesion % 3 == fold])
    (tmp_path / "data/prepared").mkdir(parents=True)
    write_csv(tmp_path / "data/prepared/labels.csv", table[["image_id", "dx"]].iloc[:-1])
    np.save(tmp_path / "data/prepared/images.npy", np.full((len(table) - 1, 16, 16, 3), 90, np.uint8))
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    monkeypatch.chdir(tmp_path)
    return ["labels", "folds=fold0.csv,fold1.csv,fold2.csv"]


def test_the_command_writes_ranking_sheets_and_rows_to_judge(folds, tmp_path, capsys):
    assert cli.main([*folds, "--top", "31"]) == 0
    out = capsys.readouterr().out
    assert "120 lesions, each predicted out-of-fold (3 folds)" in out
    folder = tmp_path / "doubtful_labels"
    ranking, rows = pd.read_csv(folder / "ranking.csv"), pd.read_csv(folder / "to_judge.csv", keep_default_na=False)
    assert list(ranking) == COLUMNS
    assert ranking["lesion_id"].nunique() == 120
    assert rows["verdict"].eq("").all()
    proposed = ranking[ranking["suggested"].notna()].drop_duplicates("lesion_id").head(31)
    assert rows[["image_id", "dx"]].to_numpy().tolist() == proposed[["image_id", "suggested"]].to_numpy().tolist()
    sheet = Image.open(folder / "labels_001.png")
    assert (np.asarray(sheet) == 90).all(axis=-1).sum() >= min(len(rows), 30) * 150**2  # the pictures are on it
    assert (folder / "labels_002.png").exists() == (len(rows) > 30)
    assert (folder / ".gitignore").read_text() == "labels_[0-9]*.png\n"
    assert not (tmp_path / "verdicts").exists()

    (tmp_path / "verdicts").mkdir()
    rows.head(2).assign(verdict=["relabel", "keep"]).to_csv(tmp_path / "verdicts/labels.csv", index=False)
    assert len(read_label_verdicts(tmp_path / "verdicts/labels.csv")) == 2
    assert cli.main(folds) == 0
    again = pd.read_csv(folder / "to_judge.csv")
    assert not set(again["image_id"]) & set(rows["image_id"].head(2))


def test_rows_that_somebody_wrote_in_are_not_replaced(folds, tmp_path, capsys):
    assert cli.main(folds) == 0
    path = tmp_path / "doubtful_labels/to_judge.csv"
    assert is_not_judged(path)
    rows = pd.read_csv(path, dtype=str, keep_default_na=False)
    for column, text in (("verdict", "drop"), ("dx", "wart"), ("note", rows["note"][0] + " asked Dr X"), ("dx", "")):
        rows.assign(**{column: rows[column].where(rows.index != 0, text)}).to_csv(path, index=False)
        assert not is_not_judged(path), column
    kept = path.read_bytes()
    assert cli.main(folds) == 1
    assert "to_judge.csv exists, and this command did not write it. Nothing was written" in capsys.readouterr().err
    assert path.read_bytes() == kept


def test_melanoma_or_not_proposes_a_diagnosis_or_none_and_shows_the_one_given(tmp_path):
    table, classes = simulated(4, lesions=300, swapped=0.2)[0], ["non_mel", "mel"]
    own = dict(zip(table["image_id"], table["dx"], strict=True))
    p = table["p_mel"]
    table = table.assign(dx=np.where(table["dx"] == "mel", "mel", "non_mel"), p_non_mel=1 - p, logit_non_mel=0.0)
    table = table.drop(columns="lesion_predicted")
    ranking = rank_labels(table, classes)
    chosen = to_judge(ranking, set(), 10**6)
    assert set(chosen["suggested"]) == set(classes)
    (tmp_path / "labels_009.png").write_bytes(b"of an earlier list")
    pages = write_proposal(tmp_path, ranking, chosen, lambda image: None, own)
    assert sorted(tmp_path.glob("*.png")) == pages
    assert is_not_judged(tmp_path / "to_judge.csv")
    rows = pd.read_csv(tmp_path / "to_judge.csv", dtype=str, keep_default_na=False)
    for row, doubt in zip(rows.itertuples(), chosen.itertuples(), strict=True):
        assert row.dx == ("mel" if doubt.suggested == "mel" else "")
        given = "mel" if doubt.dx == "mel" else f"{own[row.image_id]} (non_mel)"
        assert row.note.startswith(f"given {given} {doubt.self_confidence:.1%}, suggested {doubt.suggested} ")
    rows.assign(verdict="relabel")[rows["dx"] != ""].to_csv(tmp_path / "verdicts.csv", index=False)
    labels = table.assign(dx=table["image_id"].map(own))
    path = tmp_path / "verdicts.csv"
    assert judge_labels(labels, read_label_verdicts(path), path).changes


def test_a_picture_is_found_by_an_id_that_a_spreadsheet_would_take_for_a_formula(tmp_path):
    write_csv(tmp_path / "labels.csv", pd.DataFrame({"image_id": ["@scan1", "b"], "dx": ["nv", "mel"]}))
    np.save(tmp_path / "images.npy", np.full((2, 4, 4, 3), 7, np.uint8))
    assert packed_pictures(tmp_path / "labels.csv", tmp_path / "images.npy")("@scan1") is not None
    assert given_diagnoses(tmp_path / "labels.csv") == {"@scan1": "nv", "b": "mel"}
    assert given_diagnoses(tmp_path / "none.csv") == {}


def test_the_same_predictions_give_the_same_bytes(folds, tmp_path):
    assert cli.main([*folds, "--out", "one"]) == cli.main([*folds, "--out", "two"]) == 0
    names = {path.name for path in (tmp_path / "one").iterdir()}
    assert {"ranking.csv", "to_judge.csv", "labels_001.png", ".gitignore"} <= names
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_one_run_ranks_its_test_split_and_wrong_words_are_said(folds, capsys, monkeypatch):
    assert cli.main(["labels", "fold0.csv"]) == 0
    assert "40 lesions: the test split alone" in capsys.readouterr().out
    for words, said in (
        ([], "name the folds' experiments, or a study with --study NAME"),
        (["fold0.csv", "--study", "a"], "name the folds' experiments, or a study with --study NAME"),
        (["--study", "nothing"], "there is no study 'nothing'; studies/ has none"),
        (["fold0.csv", "--top", "0"], "--top is 0; it must be 1 or more"),
    ):
        assert cli.main(["labels", *words]) == 1
        assert said in capsys.readouterr().err
    monkeypatch.setattr(rank, "get_label_quality_scores", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[labels\]'"):
        rank.require_cleanlab()


def test_a_study_gives_its_complete_settings(tmp_path, monkeypatch):
    content = {"settings": {"a": {}, "b": {"set": {"train.lr": 0.5}}}, "seeds": [0], "folds": 3}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    states = {f"mine-{setting}-seed0-fold{fold}": "done" for setting in "ab" for fold in range(3)}
    monkeypatch.setattr(members, "standing", lambda *_: {name: Standing(states[name], name) for name in states})
    states["mine-b-seed0-fold1"] = "failed"
    words, remarks = of_study(str(tmp_path / "mine.yaml"), ROOT)
    assert words == ["a=mine-a-seed0-fold0,mine-a-seed0-fold1,mine-a-seed0-fold2"]
    assert remarks == ["b left out: 2 of 3 members are done"]
    states["mine-a-seed0-fold0"] = "missing"
    with pytest.raises(UserError, match="no setting of the study mine is complete"):
        of_study(str(tmp_path / "mine.yaml"), ROOT)


@pytest.mark.sweep
def test_labels_swapped_in_the_drawn_set_are_found_by_five_folds_of_the_real_pipeline(tmp_path):
    """3 % of the drawn lesions have another label in a copy of the set; five trainings of the sample's model."""
    project, copy = tmp_path / "project", tmp_path / "set"
    project.mkdir()
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["evaluate"] |= {"resamples": 100}
    params["machine"] |= {"threads": 1}

    def run(*stages: str) -> None:
        (project / "params.yaml").write_text(yaml.safe_dump(params))
        for stage in stages:
            command = [sys.executable, "-m", f"stages.{stage}"]
            done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr

    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run("download")
    drawn = pd.read_csv(next((project / "data/raw").glob("*.csv")), dtype=str, keep_default_na=False)
    lesions = drawn.drop_duplicates("lesion_id").reset_index(drop=True)
    generator = np.random.default_rng(0)
    chosen = generator.choice(len(lesions), round(0.03 * len(lesions)), replace=False)
    new = {
        lesions["lesion_id"][place]: generator.choice([code for code in CODES if code != lesions["dx"][place]])
        for place in chosen
    }
    copy.mkdir()
    swapped = [new.get(lesion, dx) for lesion, dx in zip(drawn["lesion_id"], drawn["dx"], strict=True)]
    drawn.assign(dx=swapped).to_csv(copy / "labels.csv", index=False)
    for picture in (project / "data/raw").rglob("*.jpg"):
        shutil.copy(picture, copy)
    shutil.rmtree(project / "data")
    params["data"] |= {"source": "table", "dir": str(copy)}
    params["split"] |= {"scheme": "kfold", "folds": 5}
    tables = []
    for fold in range(5):
        params["split"]["fold"] = fold
        first = ["download", "prepare", "external", "features"] if fold == 0 else []
        run(*first, "split", "train", "ood", "calibrate", "evaluate")
        table, classes = read_predictions(project / "data/predictions.csv")
        tables.append(table[table["split"] == "test"])
    ranking = rank_labels(pd.concat(tables, ignore_index=True), classes)
    found = recall(ranking, set(new))
    print(f"recall {found:.3f} of {len(new)} planted")
    assert found >= 0.8
