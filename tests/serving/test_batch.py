"""A batch predicts what the predictor predicts, resumes where it was stopped, and is stopped by no single file."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.datasets import picture, write_table
from helpers.models import CLASSES, write_model
from helpers.pictures import PIXELS, dicom, encoded, heic

from exp_tools.cli import main as cli
from exp_tools.cli.serve import outcome_text
from exp_tools.errors import UserError
from exp_tools.evaluation.metrics.classification import headline_metrics
from exp_tools.evaluation.predictions import as_arrays, read_predictions
from exp_tools.serving import batch_inputs as batch_inputs_module
from exp_tools.serving.batch import AHEAD, predict_batch, problems_file
from exp_tools.serving.batch_inputs import batch_inputs
from exp_tools.serving.predictor import Patient, Predictor

torch.set_num_threads(1)
HEADER = "image_id,lesion_id,dx,age,sex,localization"
WORDS = ("bcc", "mel", "nv")


@pytest.fixture
def folder(tmp_path):
    """Ten pictures, some of them deeper, and a model beside the folder."""
    for number in range(10):
        place = tmp_path / "images" / ("deep/er" if number % 3 == 0 else "")
        place.mkdir(parents=True, exist_ok=True)
        picture(number, 120, 90).save(place / f"image_{number}.jpg")
    write_model(tmp_path / "m.safetensors")
    return tmp_path / "images"


@pytest.fixture
def predictor(folder):
    return Predictor(folder.parent / "m.safetensors")


def rows(count: int = 10) -> list[str]:
    return [
        f"image_{number},lesion_{number // 2},{WORDS[number // 2 % 3]},{30 + number},male,back"
        for number in range(count)
    ]


def probabilities(table: pd.DataFrame) -> np.ndarray:
    return table[[f"p_{code}" for code in CLASSES]].to_numpy(dtype=float)


def test_a_folder_becomes_a_table_with_what_the_predictor_says(folder, predictor, tmp_path):
    outcome = predict_batch(predictor, batch_inputs(folder), tmp_path / "out/p.csv", batch_size=4, threads=2)
    table = pd.read_csv(tmp_path / "out/p.csv")
    assert (outcome.predicted, outcome.resumed, outcome.problems, outcome.report) == (10, 0, [], None)
    assert sorted(table["image_id"]) == [f"image_{number}" for number in range(10)]
    for row in table.itertuples():
        single = predictor.predict(row.file)
        assert row.predicted == single.diagnosis
        assert [getattr(row, f"p_{code}") for code in CLASSES] == pytest.approx(
            list(single.probabilities.values()), abs=2e-6
        )
        assert (row.abstain, row.melanoma) == (single.abstain, single.melanoma) == (True, True)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["p.csv"]


def test_a_table_gives_metadata_and_scores(folder, tmp_path):
    write_model(tmp_path / "m.safetensors", "multimodal")
    predictor = Predictor(tmp_path / "m.safetensors")
    write_table(folder / "table.csv", [*rows(9), "image_9,lesion_4,wart,,,"], HEADER)
    outcome = predict_batch(predictor, batch_inputs(folder / "table.csv"), tmp_path / "p.csv", threads=2)
    table = pd.read_csv(tmp_path / "p.csv", keep_default_na=False)
    known = Patient(33, "male", "back")
    fourth = table[table["image_id"] == "image_3"].iloc[0]
    expected = list(predictor.predict(fourth["file"], known).probabilities.values())
    assert [fourth[f"p_{code}"] for code in CLASSES] == pytest.approx(expected, abs=2e-6)
    last = table[table["image_id"] == "image_9"].iloc[0]
    expected = list(predictor.predict(last["file"]).probabilities.values())
    assert [last[f"p_{code}"] for code in CLASSES] == pytest.approx(expected, abs=2e-6)
    assert outcome.left_out == {"wart": 1}
    assert outcome.report["images"] == 9
    assert outcome.report["lesions"] == 5
    scored = table[table["dx"] != "wart"]
    labels = scored["dx"].map({code: place for place, code in enumerate(CLASSES)}).to_numpy()
    by_hand = (probabilities(scored).argmax(axis=1) == labels).mean()
    assert outcome.report["metrics"]["accuracy"] == pytest.approx(by_hand)
    rule = "lesion 'lesion_4' has several diagnoses: mel in row 10, wart in row 11; a lesion has one"
    assert [str(problem) for problem in outcome.problems] == [f"table.csv, row {row}, dx: {rule}" for row in (10, 11)]


def test_a_lesion_with_two_diagnoses_is_predicted_and_not_scored(folder, predictor, tmp_path):
    write_table(folder / "table.csv", [*rows(8), "image_8,lesion_0,nv,,,", "image_9,lesion_9,nv,,,"], HEADER)
    outcome = predict_batch(predictor, batch_inputs(folder / "table.csv"), tmp_path / "p.csv", threads=1)
    assert (outcome.predicted, outcome.report["images"], outcome.torn) == (10, 7, 3)
    assert {problem.kind for problem in outcome.problems} == {"two_diagnoses"}
    assert pd.read_csv(tmp_path / "p.csv")["dx"].tolist() == ["bcc"] * 2 + ["mel"] * 2 + ["nv"] * 2 + ["bcc"] * 2 + [
        "nv",
        "nv",
    ]
    assert "several diagnoses: 3 images" in outcome_text(outcome, tmp_path / "p.csv")
    write_table(folder / "table.csv", ["image_0,lesion_0,mel,,,", "image_1,lesion_0,nv,,,"], HEADER)
    outcome = predict_batch(predictor, batch_inputs(folder / "table.csv"), tmp_path / "q.csv", threads=1)
    assert (outcome.predicted, outcome.report, outcome.torn) == (2, None, 2)


def test_a_packed_table_is_not_promised(folder, tmp_path, capsys):
    out = tmp_path / "p.csv.gz"
    assert cli.main(["batch", str(folder), "--model", str(folder.parent / "m.safetensors"), "--out", str(out)]) == 1
    assert f"--out is {out}; the table is plain text: name a file that ends with .csv" in capsys.readouterr().err
    assert not out.exists()


def test_the_table_can_be_scored_again_without_the_model(folder, predictor, tmp_path):
    write_table(folder / "table.csv", rows(), HEADER)
    outcome = predict_batch(predictor, batch_inputs(folder / "table.csv"), tmp_path / "p.csv", threads=1)
    table, classes = read_predictions(tmp_path / "p.csv")
    again = headline_metrics(*as_arrays(table, classes)[:2], classes)
    assert again["balanced_accuracy"] == outcome.report["metrics"]["balanced_accuracy"]


def test_bad_files_are_listed_and_the_rest_is_predicted(folder, predictor, tmp_path):
    (folder / "broken.jpg").write_bytes((folder / "image_1.jpg").read_bytes()[:400])
    (folder / "empty.png").write_bytes(b"")
    (folder / "words.jpg").write_text("no image")
    outcome = predict_batch(predictor, batch_inputs(folder), tmp_path / "p.csv", batch_size=3, threads=2)
    assert outcome.predicted == 10
    listed = pd.read_csv(problems_file(tmp_path / "p.csv"))
    assert dict(zip(listed["value"], listed["kind"], strict=True)) == {
        "broken.jpg": "damaged_image",
        "empty.png": "empty_image",
        "words.jpg": "not_an_image",
    }
    assert set(listed["action"]) == {"skipped"}
    for name in listed["value"]:
        (folder / name).unlink()
    predict_batch(predictor, batch_inputs(folder), tmp_path / "p.csv", threads=2)
    assert not problems_file(tmp_path / "p.csv").exists()


def test_faults_of_a_table_are_put_right_or_left_out_and_said(folder, predictor, tmp_path):
    lines = [
        *rows(6),
        "image_6.jpg ,lesion_3,mel,old,male,back",
        "nowhere,lesion_7,nv,40,male,back",
        "image_0,lesion_0,bcc,30,male,back",
        "image_7,lesion_9,nv,200,it,back",
    ]
    write_table(folder / "table.csv", lines, HEADER)
    work = batch_inputs(folder / "table.csv")
    assert list(work.labels["image_id"]) == [f"image_{number}" for number in range(8)]
    assert {(problem.kind, problem.action) for problem in work.problems} == {
        ("untidy_text", "fixed"),
        ("bad_age", "fixed"),
        ("missing_image", "skipped"),
        ("duplicate_id", "skipped"),
        ("unknown_sex", "fixed"),
    }
    assert list(work.labels["age"].isna()) == [False] * 6 + [True, True]
    assert work.labels["sex"].iloc[7] == "unknown"


def test_rows_without_an_image_are_listed_in_their_place_and_not_looked_at_any_further(folder, monkeypatch):
    looked_at = []

    def check(table, classes):
        looked_at.append(len(table))
        return []

    monkeypatch.setattr(batch_inputs_module, "check_labels", check)
    write_table(folder / "table.csv", [f"absent_{row},,odd,-3,it,back" for row in range(500)] + rows(2), HEADER)
    work = batch_inputs(folder / "table.csv")
    assert looked_at == [2]
    assert len(work.files) == 2
    assert [problem.row for problem in work.problems] == list(range(2, 502))
    assert work.problems[0].value == "absent_0"
    assert {(problem.kind, problem.action) for problem in work.problems} == {("missing_image", "skipped")}


class Stop(Exception):
    """Ends a batch as a signal would."""


def counting(predictor, monkeypatch, stop_after: int | None = None) -> list[int]:
    """How many images each forward pass has; an exception ends the batch in place of pass `stop_after`."""
    passes, right = [], predictor.engine.logits

    def logits(pixels, metadata):
        if len(passes) == stop_after:
            raise Stop
        passes.append(len(pixels))
        return right(pixels, metadata)

    monkeypatch.setattr(predictor.engine, "logits", logits)
    return passes


def test_a_batch_goes_on_where_it_was_stopped_and_ends_with_the_same_bytes(folder, predictor, tmp_path, monkeypatch):
    (folder / "words.jpg").write_text("no image")
    work, out = batch_inputs(folder), tmp_path / "p.csv"
    predict_batch(predictor, work, tmp_path / "whole.csv", batch_size=2, threads=2)
    with monkeypatch.context() as patch:
        assert counting(predictor, patch, stop_after=3) == []
        with pytest.raises(Stop):
            predict_batch(predictor, work, out, batch_size=2, threads=2)
    assert not out.exists()
    journal = tmp_path / ".p.csv.journal"
    done = len(journal.read_text().splitlines()) - 1
    assert done == 6
    with journal.open("a") as file:
        file.write('["half a li')
    changed = batch_inputs(folder).files[0]
    os.utime(changed, ns=(1, 1))  # looks like another file: it is done again
    passes = counting(predictor, monkeypatch)
    outcome = predict_batch(predictor, work, out, batch_size=2, threads=2)
    assert outcome.resumed == 5
    assert sum(passes) == 5
    assert out.read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert not journal.exists()


def test_the_journal_of_another_model_is_not_taken_over(folder, predictor, tmp_path, monkeypatch):
    counting(predictor, monkeypatch, stop_after=1)
    with pytest.raises(Stop):
        predict_batch(predictor, batch_inputs(folder), tmp_path / "p.csv", batch_size=2, threads=1)
    write_model(tmp_path / "other.safetensors", "soft_attention")
    with pytest.raises(UserError, match=r"p\.csv\.journal is left over from a batch with another model"):
        predict_batch(Predictor(tmp_path / "other.safetensors"), batch_inputs(folder), tmp_path / "p.csv", threads=1)


def test_any_image_is_predicted_by_its_content_and_what_is_none_is_listed(folder, predictor, tmp_path):
    (folder / "phone.heic").write_bytes(heic())
    (folder / "IM0001").write_bytes(dicom(PIXELS, "RGB"))
    (folder / "picture.jp2").write_bytes(encoded("JPEG2000"))
    (folder / "notes.pdf").write_bytes(b"%PDF")
    outcome = predict_batch(predictor, batch_inputs(folder), tmp_path / "p.csv", threads=1)
    assert {"phone", "IM0001"} <= set(pd.read_csv(tmp_path / "p.csv")["image_id"])
    assert [(Path(problem.file).name, problem.kind) for problem in outcome.problems] == [
        ("picture.jp2", "not_an_image")
    ]


def test_few_images_wait_in_memory(folder, predictor, tmp_path, monkeypatch):
    waiting, most, prepare, right = set(), [], predictor.prepare, predictor.engine.logits
    monkeypatch.setattr(predictor, "prepare", lambda image: (waiting.add(image), prepare(image))[1])

    def logits(pixels, metadata):
        most.append(len(waiting))
        for image in sorted(waiting)[: len(pixels)]:
            waiting.discard(image)
        return right(pixels, metadata)

    monkeypatch.setattr(predictor.engine, "logits", logits)
    predict_batch(predictor, batch_inputs(folder), tmp_path / "p.csv", batch_size=1, threads=2)
    assert len(most) == 10
    assert max(most) <= AHEAD + 1


def test_files_of_one_name_keep_apart(folder, predictor, tmp_path):
    (folder / "again").mkdir()
    picture(30, 80, 80).save(folder / "again/image_1.jpg")
    predict_batch(predictor, batch_inputs(folder), tmp_path / "p.csv", threads=1)
    ids = set(pd.read_csv(tmp_path / "p.csv")["image_id"])
    assert {"again/image_1.jpg", "image_1.jpg", "image_2"} <= ids
    assert len(ids) == 11


def test_masks_in_a_folder_are_no_images_of_skin(folder):
    picture(31, 80, 80).save(folder / "image_1_segmentation.png")
    work = batch_inputs(folder)
    assert len(work.files) == 10
    assert [(one.kind, one.value, one.action) for one in work.problems] == [
        ("mask", "image_1_segmentation.png", "skipped")
    ]


def test_nothing_to_predict_is_said(folder, predictor, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="there is no image below"):
        batch_inputs(tmp_path / "empty")
    with pytest.raises(UserError, match="neither a folder with images nor a table"):
        batch_inputs(folder / "image_1.jpg")
    write_table(tmp_path / "table.csv", ["far,nv"], "image_id,dx")
    with pytest.raises(UserError, match="names no image that is below"):
        batch_inputs(tmp_path / "table.csv")
    write_table(tmp_path / "table.csv", ["far"], "name")
    with pytest.raises(UserError, match="has no column image_id"):
        batch_inputs(tmp_path / "table.csv")
    (tmp_path / "empty/words.jpg").write_text("no image")
    with pytest.raises(UserError, match="none of 1 images can be used"):
        predict_batch(predictor, batch_inputs(tmp_path / "empty"), tmp_path / "p.csv", threads=1)


def test_the_command_says_what_it_did(folder, tmp_path, capsys):
    write_table(tmp_path / "table.csv", [*rows(9), "nowhere,x,nv,,,"], HEADER)
    arguments = ["batch", str(tmp_path / "table.csv"), "--images", str(folder), "--out", str(tmp_path / "p.csv")]
    assert cli.main([*arguments, "--model", str(tmp_path / "m.safetensors")]) == 0
    text = capsys.readouterr().out
    assert "9 images of 5 lesions" in text
    assert "balanced accuracy" in text
    assert f"{tmp_path / 'p.csv'}: 9 images predicted\n" in text
    assert "1 left out, 0 fixed or noted" in text
    assert "trained on synthetic: synthetic images" in text
    assert "Not a medical device" in text
    assert cli.main(["batch", str(folder), "--model", str(tmp_path / "none"), "--out", str(tmp_path / "q.csv")]) == 1
    assert "there is no model file" in capsys.readouterr().err


@pytest.mark.parametrize("ending", [".tsv", ".csv.gz", ".xlsx"])
def test_a_table_may_be_of_every_kind_that_is_named(folder, ending):
    table = pd.DataFrame([row.split(",") for row in rows(3)], columns=HEADER.split(","))
    path = folder / f"table{ending}"
    if ending == ".xlsx":
        table.to_excel(path, index=False)
    else:
        table.to_csv(path, index=False, sep="\t" if ending == ".tsv" else ",")
    assert list(batch_inputs(path).labels["image_id"]) == ["image_0", "image_1", "image_2"]
