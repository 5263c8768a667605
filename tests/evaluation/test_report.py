"""The report of a scored set, test-time augmentation, and the commands that score outside the pipeline."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from helpers.predictions import scaled
from helpers.project import Project
from scipy.special import log_softmax
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import nn

from exp_tools.cli.main import main
from exp_tools.errors import UserError
from exp_tools.evaluation.compare.runs import read_run
from exp_tools.evaluation.made_with import as_locked, parameters_of
from exp_tools.evaluation.metrics.catalogue import HEADLINE
from exp_tools.evaluation.metrics.classification import headline_metrics
from exp_tools.evaluation.predict import VIEWS, predict_logits, predict_views
from exp_tools.evaluation.predictions import as_arrays, calibration_of, decisions, prediction_table, read_predictions
from exp_tools.evaluation.report.build import score_set, with_metadata
from exp_tools.evaluation.standalone.keep import packed
from exp_tools.io import write_csv
from exp_tools.models.model_file import read_facts
from exp_tools.params import parse_params

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def project(ran_project, tmp_path_factory) -> Project:
    return ran_project.copy(tmp_path_factory.mktemp("scoring") / "project")


@pytest.fixture
def inside(project, monkeypatch):
    monkeypatch.chdir(project.folder)
    return project


class Corner(nn.Module):
    """Logits: red of the top left pixel, and of the bottom right one. Tells every view from every other."""

    pixel_mean, pixel_std, uses_metadata = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), False

    def forward(self, images):
        return torch.stack([images[:, 0, 0, 0], images[:, 0, -1, -1], images[:, 0, 0, -1]], dim=1) * 255


def test_views_are_the_square_turned_and_mirrored(tmp_path):
    image = np.zeros((1, 2, 2, 3), dtype=np.uint8)
    image[0, :, :, 0] = [[1, 2], [3, 4]]
    np.save(tmp_path / "images.npy", image)
    run = {"batch_size": 4, "device": CPU}
    every = predict_views(Corner(), tmp_path / "images.npy", np.array([0]), tta="dihedral", **run)[:, 0]
    seen = {tuple(row) for row in every.round().astype(int).tolist()}
    # top left, bottom right, top right of the eight symmetries, by hand
    assert seen == {(1, 4, 2), (2, 3, 4), (4, 1, 3), (3, 2, 1), (2, 3, 1), (1, 4, 3), (3, 2, 4), (4, 1, 2)}
    flips = predict_views(Corner(), tmp_path / "images.npy", np.array([0]), tta="flips", **run)[:, 0]
    assert flips.round().astype(int).tolist() == [[1, 4, 2], [2, 3, 1], [4, 1, 3], [3, 2, 4]]
    plain = predict_logits(Corner(), tmp_path / "images.npy", np.array([0]), **run)
    assert plain.round().astype(int).tolist() == [[1, 4, 2]]
    assert {name: len(views) for name, views in VIEWS.items()} == {"none": 1, "flips": 4, "dihedral": 8}


def test_the_report_says_what_the_parts_say(inside):
    table, classes = read_predictions(inside.folder / "data/predictions.csv")
    test = table[table["split"] == "test"]
    report = json.loads((inside.folder / "metrics/report.json").read_text())["test"]
    probabilities, labels, _ = as_arrays(test, classes)
    expected = headline_metrics(probabilities, labels, classes, decisions(test, classes))
    summary = json.loads((inside.folder / "metrics/evaluate.json").read_text())
    for name, value in expected.items():
        assert report["metrics"][name] == pytest.approx(value, abs=2e-6)
        assert HEADLINE[name].in_summary == (name in summary)
        assert summary.get(name, report["metrics"][name]) == report["metrics"][name]
    assert report["images"] == len(test)
    assert report["counts"] == {code: int((test["dx"] == code).sum()) for code in classes}
    assert report["lesion_level"]["lesions"] == test["lesion_id"].nunique()
    assert summary["baseline_balanced_accuracy"] == report["baseline"]["balanced_accuracy"]
    assert {"melanoma", "calibration", "coverage", "subgroups", "gaps", "costs"} <= report.keys()
    assert "tta" not in report


def test_an_empty_set_is_refused(inside):
    table, classes = read_predictions(inside.folder / "data/predictions.csv")
    with pytest.raises(UserError, match="the set is empty"):
        score_set(
            table[:0],
            classes,
            calibration=scaled(len(classes)),
            thresholds={},
            costs=None,
            resamples=100,
            seed=0,
        )


def test_an_image_without_a_label_is_named():
    labels = pd.DataFrame(
        {"image_id": ["a"], "dx_type": ["histo"], "age": [1.0], "sex": ["male"], "localization": ["back"]}
    )
    with pytest.raises(UserError, match="1 predicted images are in no label table, the first is b"):
        with_metadata(pd.DataFrame({"image_id": ["a", "b"]}), labels)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.75])
def test_temperature_and_bias_are_found_again(temperature):
    logits = np.random.default_rng(3).normal(size=(50, 4)).round(6)
    bias = np.array([1.5, -2.0, 0.25, 0.25])
    powers = np.exp(logits / temperature + bias)
    probabilities = (powers / powers.sum(axis=1, keepdims=True)).round(6)
    table = pd.DataFrame(
        {f"logit_{c}": logits[:, c] for c in range(4)} | {f"p_{c}": probabilities[:, c] for c in range(4)}
    )
    found = calibration_of(table, ["0", "1", "2", "3"])
    assert found.temperature == pytest.approx(temperature, rel=1e-4)
    assert found.bias == pytest.approx(bias, abs=1e-4)


def test_score_gives_the_scores_of_the_pipeline(inside, capsys):
    assert main(["score", "data/predictions.csv", "--resamples", "100", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    report = json.loads((inside.folder / "metrics/report.json").read_text())["test"]
    assert again["metrics"] == report["metrics"]
    assert again["intervals"] == report["intervals"]
    assert [row["value"] for row in again["subgroups"]] == [row["value"] for row in report["subgroups"]]
    assert main(["score", "data/predictions.csv", "--resamples", "100", "--split", "val"]) == 0
    assert "balanced accuracy" in capsys.readouterr().out


def spoil_twice(table):
    return pd.concat([table, table.iloc[:1]])


def spoil_class(table):
    return table.assign(dx=["xyz", *table["dx"][1:]])


def spoil_nan(table):
    return table.assign(logit_mel=np.nan, p_mel=np.nan)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (spoil_twice, "stand there twice in a split"),
        (spoil_class, "row 2: the diagnosis 'xyz' is not a class"),
        (spoil_nan, "NaN"),
        (lambda table: table.drop(columns="group_id"), "it lacks group_id"),
        (lambda table: table.drop(columns="p_mel"), "no probabilities (p_<class>) of: mel"),
        (lambda table: table[:0], "no row at all"),
    ],
)
def test_a_spoilt_table_is_refused(inside, capsys, tmp_path, spoil, said):
    table = pd.read_csv("data/predictions.csv")
    spoil(table).to_csv(tmp_path / "p.csv", index=False)
    assert main(["score", str(tmp_path / "p.csv"), "--resamples", "100"]) == 1
    assert said in capsys.readouterr().err


def test_a_table_of_probabilities_alone_is_scored_and_said(inside, capsys, tmp_path):
    table, classes = read_predictions(inside.folder / "data/predictions.csv")
    alone = table[[column for column in table if not column.startswith("logit_")]]
    alone.to_csv(tmp_path / "exact.csv", index=False)
    shown = {}
    for path in ("data/predictions.csv", str(tmp_path / "exact.csv")):
        assert main(["score", path, "--resamples", "100"]) == 0
        shown[path], err = capsys.readouterr()
    assert "has probabilities and no logits: scores rest on their 16 decimals, equal ones are ties" in err
    assert len(set(shown.values())) == 1
    columns = [f"p_{code}" for code in classes]
    rounded = alone.assign(**{column: alone[column].round(3) for column in columns})
    rounded.to_csv(tmp_path / "rounded.csv", index=False)
    read, found = read_predictions(tmp_path / "rounded.csv")
    assert found == classes
    assert "3 decimals, equal ones are ties, and 0 counts as 0.0005" in read.attrs["remark"]
    assert read[columns].to_numpy().min() > 0
    assert read[columns].to_numpy().sum(axis=1) == pytest.approx(1)
    assert calibration_of(read, classes).temperature == pytest.approx(1)
    assert main(["compare", str(tmp_path / "rounded.csv"), "--split", "test", "--resamples", "100"]) == 0
    assert "rounded.csv has probabilities and no logits" in capsys.readouterr().out
    alone.assign(p_mel=0.9).to_csv(tmp_path / "wrong.csv", index=False)
    with pytest.raises(UserError, match=r"row 2: p_<class> are no probabilities"):
        read_predictions(tmp_path / "wrong.csv")


def test_score_chooses_the_threshold_on_the_validation_rows_of_the_table(inside, capsys):
    facts = read_facts(inside.folder / "models/model.safetensors")
    assert main(["score", "data/predictions.csv", "--resamples", "100", "--json"]) == 0
    out, err = capsys.readouterr()
    report = json.loads((inside.folder / "metrics/report.json").read_text())["test"]["melanoma"]
    assert json.loads(out)["melanoma"]["sensitivity"] == report["sensitivity"]
    assert json.loads(out)["melanoma"]["threshold"] == pytest.approx(facts.thresholds["melanoma"], abs=1e-4)
    assert "was chosen on the table's validation rows, for a sensitivity of 95%" in err
    assert main(["score", "data/predictions.csv", "--resamples", "100"]) == 0
    assert "at the threshold of" in capsys.readouterr().out


def test_a_kept_table_gives_the_same_scores_and_carries_its_parameters(inside, capsys, tmp_path):
    kept = tmp_path / "results" / "mine.csv.gz"
    arguments = ["--resamples", "100", "--json"]
    assert main(["score", "data/predictions.csv", "--keep", str(kept), *arguments]) == 0
    scores = capsys.readouterr().out
    first = kept.read_bytes()
    assert main(["score", str(kept), *arguments]) == 0
    assert capsys.readouterr().out == scores
    assert main(["score", "data/predictions.csv", "--keep", str(kept), *arguments]) == 0
    assert kept.read_bytes() == first
    assert len(first) < (inside.folder / "data/predictions.csv").stat().st_size / 3
    params = yaml.safe_load((inside.folder / "params.yaml").read_text())
    assert parse_params(yaml.safe_load(kept.with_name("mine.yaml").read_text())) == parse_params(params)
    run = read_run(str(kept), inside.folder, "data/predictions.csv", "test")
    assert run.params["split.scheme"] == params["split"]["scheme"]
    kept.with_name("mine.yaml").unlink()
    assert read_run(str(kept), inside.folder, "data/predictions.csv", "test").params == {}


def test_parameters_that_were_changed_since_are_not_taken_for_those_of_the_table(inside, capsys, tmp_path):
    file = inside.folder / "params.yaml"
    before = file.read_text()
    made_with = yaml.safe_load(before)
    kept = tmp_path / "mine.csv.gz"
    try:
        changed = yaml.safe_load(before)
        changed["split"]["scheme"] = "image"
        changed["train"]["lr"] = 0.5
        changed["model"]["name"] = "emas"
        file.write_text(yaml.safe_dump(changed))
        assert main(["score", "data/predictions.csv", "--resamples", "10", "--keep", str(kept)]) == 0
        run = read_run("workspace", inside.folder, "data/predictions.csv", "test")
        inside.run("git", "commit", "-qam", "changed, and not run")
        committed = read_run("HEAD", inside.folder, "data/predictions.csv", "test")
    finally:
        file.write_text(before)
    used = yaml.safe_load(kept.with_name("mine.yaml").read_text())
    assert parse_params(used) == parse_params(made_with)
    for read in (run, committed):
        assert read.params["split.scheme"] == made_with["split"]["scheme"] != "image"
        assert read.params["train.lr"] == made_with["train"]["lr"]
        assert read.params["model.name"] == made_with["model"]["name"]


def test_the_parameters_of_the_images_are_those_of_their_own_stage():
    """`dvc repro train` does not run `external`, whose entry may be of another run."""
    entries = {"prepare": 224, "external": 96}
    stages = {name: {"params": {"params.yaml": {"prepare": {"image_size": size}}}} for name, size in entries.items()}
    assert as_locked({}, {"stages": stages}) == {"prepare": {"image_size": 224}}


def test_a_table_that_dvc_did_not_write_has_the_parameters_of_now(inside, tmp_path):
    other = tmp_path / "project"
    (other / "data").mkdir(parents=True)
    for name in ("params.yaml", "dvc.lock"):
        (other / name).write_bytes((inside.folder / name).read_bytes())
    table = (inside.folder / "data/predictions.csv").read_text().splitlines()
    (other / "data/predictions.csv").write_text("\n".join(table[:-1]) + "\n")
    changed = yaml.safe_load((other / "params.yaml").read_text())
    changed["train"]["lr"] = 0.5
    (other / "params.yaml").write_text(yaml.safe_dump(changed))
    assert parameters_of(other / "data/predictions.csv")["train"]["lr"] == 0.5


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda table: table.drop(columns="bias_mel"), "bias_mel"),
        (lambda table: table.assign(temperature=[2.0, *table["temperature"][1:]]), "the same in each row"),
        (lambda table: table.assign(temperature=-1.0), "one temperature above 0"),
        (lambda table: table.assign(logit_mel="x"), "a probability or logit is NaN or no number"),
    ],
)
def test_a_spoilt_kept_table_is_refused(inside, capsys, tmp_path, spoil, said):
    table = packed(*read_predictions(inside.folder / "data/predictions.csv"))
    spoil(table).to_csv(tmp_path / "p.csv.gz", index=False)
    assert main(["score", str(tmp_path / "p.csv.gz"), "--resamples", "100"]) == 1
    assert said in capsys.readouterr().err


def test_a_damaged_kept_table_is_one_line_and_nothing_of_the_users_is_replaced(inside, capsys, tmp_path):
    kept = tmp_path / "p.csv.gz"
    packed(*read_predictions(inside.folder / "data/predictions.csv")).to_csv(kept, index=False)
    kept.write_bytes(kept.read_bytes()[:-3000])
    assert main(["score", str(kept), "--resamples", "100"]) == 1
    assert "p.csv.gz cannot be read as a table: " in capsys.readouterr().err
    mine = tmp_path / "mine.csv.gz"
    mine.write_bytes(b"mine")
    for name, said in (("mine.csv.gz", "this command did not write it"), ("mine.csv", "must end in .csv.gz")):
        assert main(["score", "data/predictions.csv", "--keep", str(tmp_path / name), "--resamples", "100"]) == 1
        assert said in capsys.readouterr().err
    (tmp_path / "new.yaml").write_text("mine")
    assert main(["score", "data/predictions.csv", "--keep", str(tmp_path / "new.csv.gz"), "--resamples", "100"]) == 1
    assert "this command did not write it" in capsys.readouterr().err
    assert mine.read_bytes() == b"mine"
    assert (tmp_path / "new.yaml").read_text() == "mine"
    assert not (tmp_path / "new.csv.gz").exists()


def test_score_without_labels_says_so(inside, capsys, tmp_path, monkeypatch):
    table = inside.folder / "data/predictions.csv"
    monkeypatch.chdir(tmp_path)
    assert main(["score", str(table), "--resamples", "100"]) == 0
    assert "no subgroups" in capsys.readouterr().err
    assert main(["score", str(table), "--labels", "none.csv"]) == 1


def test_a_fault_of_the_set_names_the_folder_that_the_user_gave(inside, capsys, tmp_path):
    pictures = sorted((inside.folder / "data/raw").rglob("*.jpg"))
    mine = tmp_path / "ph2"
    for number in (1, 2):
        folder = mine / "PH2 Dataset images" / f"IMD00{number}" / f"IMD00{number}_Dermoscopic_Image"
        folder.mkdir(parents=True)
        (folder / f"IMD00{number}.bmp").write_bytes(pictures[number].read_bytes())
        (mine / f"PH2_dataset{number}.xlsx").write_bytes(bytes(number))
    assert main(["evaluate", "--source", "ph2", "--dir", str(mine), "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert f"below {mine} is more than one workbook of PH2: PH2_dataset1.xlsx, PH2_dataset2.xlsx" in said
    assert "exp-tools-" not in said


def test_evaluate_scores_a_set_elsewhere_and_leaves_out_what_training_has(inside, capsys, tmp_path):
    own = pd.read_csv("data/prepared/labels.csv", dtype=str)
    pictures = sorted((inside.folder / "data/raw").rglob("*.jpg"))
    chosen = own[own["image_id"].isin([path.stem for path in pictures[:20]])]
    (tmp_path / "set").mkdir()
    for path in pictures[:20]:
        (tmp_path / "set" / path.name).write_bytes(path.read_bytes())
    chosen[["image_id", "lesion_id", "dx", "age", "sex", "localization"]].to_csv(tmp_path / "set/t.csv", index=False)
    command = ["evaluate", "--source", "table", "--dir", str(tmp_path / "set"), "--out", str(tmp_path / "out")]
    assert main(command) == 1  # the model was trained on a part of this very set: nothing is left
    assert "0 rows" in capsys.readouterr().err

    (inside.folder / "data/prepared/labels.csv").rename(inside.folder / "kept.csv")
    try:
        assert main(command) == 0
    finally:
        (inside.folder / "kept.csv").rename(inside.folder / "data/prepared/labels.csv")
    said = capsys.readouterr().out
    assert "was not checked" in said
    ours, _ = read_predictions(tmp_path / "out/predictions.csv")
    theirs, _ = read_predictions(inside.folder / "data/predictions.csv")
    shared = theirs.set_index("image_id").loc[lambda table: table.index.isin(ours["image_id"])]
    assert len(shared) >= 3
    again = ours.set_index("image_id").loc[shared.index]
    assert np.abs(again["logit_mel"] - shared["logit_mel"]).max() < 1e-4
    assert json.loads((tmp_path / "out/report.json").read_text())["images"] == len(ours) == 20


def test_a_model_of_another_task_is_refused(project, tmp_path):
    other = project.copy(tmp_path / "other")
    text = (other.folder / "params.yaml").read_text().replace("task: diagnosis", "task: melanoma")
    (other.folder / "params.yaml").write_text(text)
    done = other.run("python", "-m", "stages.evaluate", check=False)
    assert done.returncode == 1
    assert "is a model of the task diagnosis" in done.stderr


def test_an_empty_test_split_is_refused(project, tmp_path):
    other = project.copy(tmp_path / "other")
    path = other.folder / "data/splits.csv"
    splits = pd.read_csv(path)
    path.unlink()
    splits.assign(split=splits["split"].replace("test", "val")).to_csv(path, index=False)
    done = other.run("python", "-m", "stages.evaluate", check=False)
    assert done.returncode == 1
    assert "has no test image" in done.stderr


def test_test_time_augmentation_is_reported_with_its_cost(project, tmp_path):
    other = project.copy(tmp_path / "other")
    text = (other.folder / "params.yaml").read_text().replace("tta: none", "tta: dihedral")
    (other.folder / "params.yaml").write_text(text)
    for name in ("data/predictions.csv", "metrics/report.json", "metrics/evaluate.json"):
        (other.folder / name).unlink()
    other.run("python", "-m", "stages.evaluate")
    with_views = json.loads((other.folder / "metrics/report.json").read_text())["test"]
    plain = json.loads((project.folder / "metrics/report.json").read_text())["test"]
    assert with_views["tta"]["views"] == 8
    assert with_views["tta"]["metrics_without"] == {
        name: plain["metrics"][name] for name in with_views["tta"]["metrics_without"]
    }
    assert with_views["metrics"]["log_loss"] != plain["metrics"]["log_loss"]
    assert "over 8 views" in (other.folder / "MODEL_CARD.md").read_text()


def confident(temperature: float) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """Predictions of a very sure model with a few mistakes: the table, its logits [N, 3] and labels [N]."""
    generator = np.random.default_rng(11)
    labels = generator.integers(0, 3, 400)
    guessed = np.where(generator.random(400) < 0.9, labels, (labels + 1) % 3)
    logits = generator.normal(size=(400, 3)) + 14 * np.eye(3)[guessed]
    names = [f"i{number}" for number in range(400)]
    images = pd.DataFrame({"image_id": names, "lesion_id": names, "group_id": names, "source": "drawn"})
    table = prediction_table(
        images.assign(dx=np.array(["bkl", "mel", "nv"])[labels]),
        "test",
        logits,
        ["bkl", "mel", "nv"],
        scaled(3, temperature),
    )
    return table, logits, labels


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_scores_are_those_of_the_logits_in_memory_and_from_the_file(tmp_path, temperature):
    table, logits, labels = confident(temperature)
    exact = log_softmax(logits / temperature, axis=1)
    write_csv(tmp_path / "p.csv", table)
    again, classes = read_predictions(tmp_path / "p.csv")
    for found in (table, again):
        scores = headline_metrics(*as_arrays(found, classes)[:2], classes)
        assert scores["log_loss"] == pytest.approx(-exact[np.arange(400), labels].mean(), abs=1e-6)
        areas = [roc_auc_score(labels == place, exact[:, place]) for place in range(3)]
        assert scores["macro_auc"] == pytest.approx(np.mean(areas), abs=1e-6)
        average = [average_precision_score(labels == place, exact[:, place]) for place in range(3)]
        assert scores["average_precision"] == pytest.approx(np.mean(average), abs=1e-6)
    assert calibration_of(again, classes).temperature == pytest.approx(temperature, rel=1e-9)


def test_a_table_with_rounded_probabilities_is_scored_by_its_logits(tmp_path):
    """As the tables were written that older runs left behind."""
    table, logits, labels = confident(2.5)
    numbers = [column for column in table if column.startswith(("p_", "logit_"))]
    write_csv(tmp_path / "p.csv", table.assign(**table[numbers].round(6)))
    again, classes = read_predictions(tmp_path / "p.csv")
    exact = log_softmax(logits / 2.5, axis=1)[np.arange(400), labels]
    scores = headline_metrics(*as_arrays(again, classes)[:2], classes)
    assert scores["log_loss"] == pytest.approx(-exact.mean(), rel=1e-3)


def test_probabilities_that_do_not_follow_from_the_logits_are_refused(tmp_path):
    table, *_ = confident(1.0)
    table.loc[7, ["p_bkl", "p_mel", "p_nv"]] = [0.2, 0.3, 0.5]
    write_csv(tmp_path / "p.csv", table)
    with pytest.raises(UserError, match=r"p\.csv, row 9: .*softmax"):
        read_predictions(tmp_path / "p.csv")
