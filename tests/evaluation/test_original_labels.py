"""Where people changed labels of the test split, scores are given with the original ones too."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from helpers.predictions import CLASSES, predictions, scaled

from exp_tools.cli import main as cli
from exp_tools.evaluation.metrics.classification import headline_metrics
from exp_tools.evaluation.predictions import as_arrays, decisions, read_predictions
from exp_tools.evaluation.report.build import METADATA, score_set
from exp_tools.evaluation.report.original_labels import all_sets, original_labels, original_labels_section, text_line
from exp_tools.io import write_csv
from exp_tools.project import LABEL_VERDICTS, LABELS, SPLITS
from stages.evaluate import own_set


def changed(table: pd.DataFrame, rows: list[int], dx: str = "mel") -> pd.DataFrame:
    """The table after these rows were relabelled."""
    now = table["dx"].where(~table.index.isin(rows), dx)
    return table.assign(dx=now, dx_original=table["dx"])


def scores(table: pd.DataFrame, dropped: pd.DataFrame | None = None):
    return original_labels(table, dropped, CLASSES, resamples=50, seed=0)


def test_the_scores_are_those_of_the_labels_before():
    table = predictions(per_lesion=2)
    found = scores(changed(table, [0, 1, 4]))  # 0, 1: a lesion of bkl; 4: an image of nv
    assert found["relabelled"] == {"images": 3, "lesions": 2}
    assert found["dropped"] == {"images": 0, "lesions": 0}
    probabilities, labels, _ = as_arrays(table, CLASSES)
    assert found["metrics"] == headline_metrics(probabilities, labels, CLASSES, decisions(table, CLASSES))
    bounds = found["intervals"]["balanced_accuracy"]
    assert bounds["low"] < found["metrics"]["balanced_accuracy"] < bounds["high"]


def test_dropped_images_count_with_their_label_and_nothing_changed_is_none():
    table = predictions().assign(dx_original=lambda rows: rows["dx"])
    gone, rest = table.iloc[:3], table.iloc[3:]
    found = scores(rest, gone)
    assert (found["images"], found["relabelled"]["images"], found["dropped"]["images"]) == (120, 0, 3)
    whole = headline_metrics(*as_arrays(table, CLASSES)[:2], CLASSES, decisions(table, CLASSES))
    assert found["metrics"] == pytest.approx(whole)
    assert scores(table) is None
    assert scores(predictions(), None) is None


def test_report_card_and_text_say_it():
    table = changed(predictions(), [0, 3]).assign(**dict.fromkeys(METADATA, "unknown") | {"age": np.nan})
    given = {"calibration": scaled(3), "thresholds": {}, "costs": None, "resamples": 50, "seed": 0}
    gone = predictions(first=500, images=2).assign(dx_original=lambda rows: rows["dx"], split="dropped")
    report = score_set(table, CLASSES, dropped=gone, **given)
    card = "\n".join(original_labels_section(report))
    assert "### Changed test labels" in card
    assert "2 of 120 images were relabelled by hand (2 lesions), and 2 (2 lesions) were dropped" in card
    balanced = report["original_labels"]["metrics"]["balanced_accuracy"]
    assert f"With the original labels: balanced accuracy {balanced:.3f} (" in card
    assert f"with the original labels balanced accuracy is {balanced:.3f}" in text_line(report)[1]
    unchanged = score_set(table.drop(columns="dx_original"), CLASSES, **given)
    assert unchanged["original_labels"] is None
    assert original_labels_section(unchanged) == text_line(unchanged) == []
    assert original_labels_section({}) == []  # a report of an earlier version


def test_a_set_without_changes_has_its_own_labels_as_original(tmp_path):
    own, external = changed(predictions(images=6), [0]), predictions(images=3, first=50).assign(split="external:x")
    write_csv(tmp_path / "p.csv", all_sets([own, external]))
    table, classes = read_predictions(tmp_path / "p.csv")
    assert classes == list(CLASSES)
    assert table["dx_original"].tolist() == [*own["dx_original"], *external["dx"]]
    assert "dx_original" not in all_sets([external, external.assign(image_id="z")])


def test_what_was_dropped_from_test_is_predicted_apart(tmp_path, monkeypatch):
    labels = pd.DataFrame({"image_id": list("abcde"), "dx": ["nv", "mel", "nv", "mel", "nv"], "age": ""})
    labels = labels.assign(dx_original=["nv", "nv", "nv", "mel", "nv"], verdict=["", "relabel", "drop", "drop", ""])
    write_csv(tmp_path / LABELS, labels)
    splits = labels[["image_id", "dx"]].assign(
        split=["val", "test", "unused", "unused", "train"], fold="", group_id="g"
    )
    write_csv(tmp_path / SPLITS, splits.assign(dropped_from=["", "", "test", "val", ""]))
    monkeypatch.chdir(tmp_path)
    own = own_set(SimpleNamespace(task="melanoma", classes=["mel", "non_mel"]))
    assert (own.rows.tolist(), own.split.tolist()) == ([0, 1, 2], ["val", "test", "dropped"])
    assert own.labels.loc[1, ["dx", "dx_original"]].tolist() == ["mel", "non_mel"]
    write_csv(tmp_path / SPLITS, splits)  # as before there were verdicts
    assert own_set(SimpleNamespace(task="melanoma", classes=["mel", "non_mel"])).rows.tolist() == [0, 1]


@pytest.mark.sweep
def test_the_pipeline_scores_relabelled_and_dropped_test_images(ran_project, tmp_path, monkeypatch, capsys):
    project = ran_project.copy(tmp_path / "project")
    before, _ = read_predictions(project.folder / "data/predictions.csv")
    old = json.loads((project.folder / "metrics/report.json").read_text())["test"]
    assert old["original_labels"] is None
    assert "dx_original" not in before
    test = before[before["split"] == "test"].drop_duplicates("lesion_id")
    common = test[test["dx"] == test["dx"].value_counts().index[0]]
    first, second = common.iloc[0], common.iloc[1]
    new = next(code for code in test["dx"].unique() if code != first["dx"])
    (project.folder / LABEL_VERDICTS).write_text(
        f"image_id,verdict,dx,note\n{first['image_id']},relabel,{new},\n{second['image_id']},drop,,\n"
    )
    project.run("dvc", "repro", "-s", "prepare", "split")
    project.run("python", "-m", "stages.evaluate")  # the same model: what training would do again is not at issue
    table, _ = read_predictions(project.folder / "data/predictions.csv")
    sizes = {one["lesion_id"]: (before["lesion_id"] == one["lesion_id"]).sum() for one in (first, second)}
    assert (table["split"] == "dropped").sum() == sizes[second["lesion_id"]]
    assert set(table.loc[table["split"] == "dropped", "lesion_id"]) == {second["lesion_id"]}
    assert table.loc[table["image_id"] == first["image_id"], ["dx", "dx_original"]].to_numpy().tolist() == [
        [new, first["dx"]]
    ]
    report = json.loads((project.folder / "metrics/report.json").read_text())["test"]
    found = report["original_labels"]
    assert found["metrics"] == {key: pytest.approx(old["metrics"][key], abs=2e-6) for key in found["metrics"]}
    assert found["relabelled"] == {"images": sizes[first["lesion_id"]], "lesions": 1}
    assert report["images"] == old["images"] - sizes[second["lesion_id"]]
    card = (project.folder / "MODEL_CARD.md").read_text()
    assert f"{sizes[first['lesion_id']]} of {report['images']} images were relabelled by hand" in card
    monkeypatch.chdir(project.folder)
    assert cli.main(["score", "data/predictions.csv", "--resamples", "100", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["original_labels"]["metrics"] == pytest.approx(found["metrics"])
