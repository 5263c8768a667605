"""A probe through its stages: the model file is whole, and what is scored from cached features is what it computes."""

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.datasets import DataProject

from exp_tools.data.inputs.metadata import Vocabulary, encode
from exp_tools.data.labels.table import read_labels, read_splits
from exp_tools.errors import UserError
from exp_tools.evaluation.predict import predict_logits
from exp_tools.models.registry import load_model

CPU = torch.device("cpu")
ENCODERS = [{"backbone": "test_resnet", "weights": "none"}, {"backbone": "test_vit", "weights": "none"}]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project whose features are computed."""
    with pytest.MonkeyPatch.context() as patch:
        made = DataProject(
            tmp_path_factory.mktemp("probe") / "project",
            patch.chdir,
            data__sample_images=90,
            model__name="probe",
            model__probe={"encoders": ENCODERS, "metadata": True, "head": "linear", "hidden": 16},
            evaluate__resamples=100,
            machine__threads=1,
        )
        made.run("download", "prepare", "external", "split", "features")
    return made


@pytest.mark.parametrize("head", ["linear", "knn", "mlp"])
def test_cached_features_give_what_the_network_gives(project, monkeypatch, head):
    monkeypatch.chdir(project.folder)
    monkeypatch.setattr("exp_tools.training.tracking.Live", Curves)
    project.change(model__probe__head=head)
    project.run("train", "ood", "calibrate", "evaluate")
    model, facts = load_model(project.folder / "models/model.safetensors")
    labels = read_labels(project.folder / "data/prepared/labels.csv")
    metadata = encode(labels, Vocabulary.from_dict(facts.vocabulary))
    split = read_splits(project.folder / "data/splits.csv")["split"]
    images, run = project.folder / "data/prepared/images.npy", {"batch_size": 7, "device": CPU, "metadata": metadata}

    card = (project.folder / "MODEL_CARD.md").read_text()
    assert f"| best setting | {facts.training['best_epoch']} of {facts.training['epochs_run']} |" in card
    assert "| starting weights | test_resnet: none, test_vit: none |" in card
    assert "epochs, so it flatters" not in card
    assert facts.training["md5_weights"] == [None, None]

    validation = pd.read_csv(project.folder / "data/validation.csv")
    rows = np.flatnonzero(split == "val")
    network = predict_logits(model, images, rows, **run)
    cached = validation[[f"logit_{code}" for code in facts.classes]].to_numpy()
    assert np.ptp(network) > 0.1
    assert np.abs(network - cached).max() < 2e-4 * max(1, np.abs(network).max())

    from_cache = pd.read_csv(project.folder / "data/predictions.csv")
    for file in (project.folder / "data/features").glob("*.npy"):
        file.rename(file.with_suffix(".gone"))
    try:
        project.run("evaluate")
    finally:
        for file in (project.folder / "data/features").glob("*.gone"):
            file.rename(file.with_suffix(".npy"))
    from_network = pd.read_csv(project.folder / "data/predictions.csv")
    columns = [f"p_{code}" for code in facts.classes]
    assert np.abs(from_cache[columns].to_numpy() - from_network[columns].to_numpy()).max() < 1e-4
    assert from_cache["predicted"].equals(from_network["predicted"])


def test_cached_features_are_used_for_the_set_alone_and_without_views(project, monkeypatch):
    from stages import evaluate

    monkeypatch.chdir(project.folder)
    monkeypatch.setattr("exp_tools.training.tracking.Live", Curves)
    project.change(model__probe__head="linear")
    project.run("train", "ood", "calibrate")
    ran = []
    views = evaluate.predict_views
    monkeypatch.setattr(evaluate, "predict_views", lambda **given: ran.append(given["tta"]) or views(**given))
    project.run("evaluate")
    assert ran == []
    project.change(evaluate__tta="flips")
    project.run("evaluate")
    assert ran == ["flips"]
    project.change(evaluate__tta="none")


def test_features_of_other_images_are_refused(project, monkeypatch):
    monkeypatch.chdir(project.folder)
    path = project.folder / "data/prepared/images.npy"
    before = path.read_bytes()
    path.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    try:
        said = project.fails("train")
    finally:
        path.write_bytes(before)
    assert "data/features does not hold the features of these images by these encoders: `dvc repro features`" in said


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__weights": "imagenet"}, "model.weights is imagenet, which a probe does not read: set it to none"),
        ({"train__cutmix": 0.5}, "train.cutmix is 0.5, which a probe with a linear head cannot do"),
        ({"train__class_weights": {"melanom": 2}}, "train.class_weights names 'melanom'.*"),
    ],
)
def test_settings_that_cannot_be_honoured_are_one_line(project, monkeypatch, changes, message):
    monkeypatch.chdir(project.folder)
    before = project.content
    project.change(model__probe__head="linear", **changes)
    try:
        with pytest.raises(UserError, match=message) as caught:
            project.run("train")
    finally:
        project.content = before
        project.change()
    assert "\n" not in str(caught.value)


def test_a_fraction_of_the_lesions_trains_any_architecture(project, monkeypatch, capsys):
    monkeypatch.chdir(project.folder)
    monkeypatch.setattr("exp_tools.training.tracking.Live", Curves)
    sizes = {}
    for name, fraction in (("probe", 0.3), ("timm", 0.3), ("probe", 1.0)):
        project.change(model__name=name, model__timm__backbone="test_resnet", train__epochs=1, train__fraction=fraction)
        project.run("train")
        facts = load_model(project.folder / "models/network.safetensors")[1]
        sizes[name, fraction] = facts.training["images"]
        assert facts.training["parameters"].get("fraction", 1.0) == fraction
    project.change(model__name="probe", train__fraction=1.0)
    assert 0 < sizes["probe", 0.3] == sizes["timm", 0.3] < 0.5 * sizes["probe", 1.0]
    assert (
        f"train.fraction 0.3: {sizes['timm', 0.3]} of {sizes['probe', 1.0]} training images" in capsys.readouterr().out
    )


class Curves:
    """Stands for DVCLive, which wants a Git repository with a commit."""

    def __init__(self, *args, **options):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def log_metric(self, name, value):
        assert np.isfinite(value)

    def make_summary(self):
        pass
