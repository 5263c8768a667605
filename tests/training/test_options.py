"""Every option of training changes what comes out, also together with the others that it must get along with."""

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState

from exp_tools.errors import UserError
from exp_tools.models.registry import build_model
from exp_tools.params import AugmentParams, TrainParams
from exp_tools.training import trainer
from exp_tools.training.loader import Setup, TrainingData
from exp_tools.training.trainer import fit
from stages.train import warn

CPU = torch.device("cpu")
CLASSES = ["a", "b", "c", "d"]
START = {
    "epochs": 2,
    "batch_size": 4,
    "lr": 3e-3,
    "warmup_epochs": 0,
    "schedule": "constant",
    "patience": None,
    "sampler": "none",
    "augment": {"preset": "none"},
}
SAME_ARITHMETIC = {"precision", "channels_last", "checkpointing", "compile", "deterministic"}
"""Other places and orders of the same sums; tests of their own."""
STILL = {"select_on": "balanced_accuracy"}  # which never rises here
PLATEAU = STILL | {"schedule": "plateau", "epochs": 4, "plateau_patience": 1}
RESTARTS = {"schedule": "warm_restarts", "restart_epochs": 1, "epochs": 4}
FROZEN = {"frozen_epochs": 1}
MIXED = {"mixup": 0.5, "cutmix": 0.5}

OPTIONS = [  # the option, another value, and the options under which it must matter
    ("seed", 1, {}),
    ("epochs", 3, {}),
    ("batch_size", 2, {}),
    ("accumulate", 2, {}),
    ("optimizer", "adam", {}),
    ("optimizer", "sgd", {}),
    ("lr", 1e-2, {}),
    *(("lr", 1e-2, {"schedule": name}) for name in ("cosine", "plateau", "warm_restarts", "one_cycle")),
    *(("weight_decay", 0.5, {"optimizer": name}) for name in ("adamw", "adam", "sgd")),
    ("weight_decay", 0.5, {"layer_decay": 0.5}),
    *(("layer_decay", 0.5, {"optimizer": name}) for name in ("adamw", "adam", "sgd")),
    ("layer_decay", 0.5, FROZEN),
    ("layer_decay", 0.5, {"unfreeze": 0.5}),
    ("momentum", 0.5, {"optimizer": "sgd"}),
    *(("eps", 0.1, {"optimizer": name}) for name in ("adamw", "adam")),
    *(("schedule", name, {}) for name in ("cosine", "warm_restarts", "one_cycle")),
    ("schedule", "plateau", STILL | {"epochs": 4, "plateau_patience": 1}),
    *(("warmup_epochs", 1, {"schedule": name}) for name in ("constant", "cosine", "plateau")),
    *(("min_lr", 1e-3, {"schedule": name}) for name in ("cosine", "warm_restarts")),
    ("min_lr", 2e-3, PLATEAU),
    ("restart_epochs", 3, RESTARTS),
    ("restart_factor", 1, RESTARTS),
    ("plateau_factor", 0.1, PLATEAU),
    ("plateau_patience", 3, PLATEAU),
    ("frozen_epochs", 1, {}),
    ("frozen_lr", 1e-2, FROZEN),
    ("unfreeze", 0.5, {}),
    ("unfreeze", 0.0, FROZEN | {"ema": 0.5}),
    ("freeze_norm", True, {}),
    ("freeze_norm", True, {"unfreeze": 0.5}),
    ("freeze_norm", True, FROZEN),
    ("loss", "focal", {}),
    ("loss", "focal", MIXED),
    ("focal_gamma", 0.5, {"loss": "focal"}),
    ("label_smoothing", 0.1, {}),
    ("label_smoothing", 0.1, {"loss": "focal"}),
    ("label_smoothing", 0.1, MIXED),
    ("class_weights", {"a": 5.0}, {}),
    ("class_weights", {"a": 5.0}, {"loss": "focal"}),
    ("class_weights", {"a": 5.0}, MIXED | {"loss": "focal", "label_smoothing": 0.1}),
    ("class_weights", "balanced", {}),
    ("class_weights", "sqrt", {}),
    ("sampler", "balanced", {}),
    ("sampler", "sqrt", {}),
    ("mixup", 0.5, {}),
    ("mixup", 0.5, {"cutmix": 0.5}),
    ("mixup", 0.5, {"accumulate": 2}),
    ("cutmix", 0.5, {}),
    ("cutmix", 0.5, {"mixup": 0.5}),
    ("clip_norm", 1e-2, {"optimizer": "sgd"}),
    ("clip_norm", 1e-2, {"optimizer": "sgd", "accumulate": 2}),
    ("clip_norm", 1e-2, {"optimizer": "sgd", "layer_decay": 0.5}),
    ("ema", 0.5, {}),
    ("ema", 0.5, FROZEN),
    ("ema", 0.5, {"unfreeze": 0.0}),
    ("ema", 0.5, {"accumulate": 2}),
    ("select_on", "loss", {}),
    ("patience", 1, STILL | {"epochs": 4}),
]
MAGNITUDES = {
    "preset": "light",
    "flip": True,
    "rotation": 30,
    "scale": 0.2,
    "shift": 0.2,
    "shear": 20,
    "perspective": 0.2,
    "brightness": 0.3,
    "contrast": 0.3,
    "saturation": 0.5,
    "hue": 30,
    "erase": 0.9,
}


@pytest.fixture
def data(tmp_path):
    """Eight images, half of them of class a."""
    np.save(tmp_path / "images.npy", np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8))
    labels = np.array([0, 0, 0, 0, 1, 1, 2, 3])
    return TrainingData(tmp_path / "images.npy", labels, np.arange(8), np.arange(8), CLASSES, list("abcdefgh"))


@pytest.fixture(autouse=True)
def scripted_scores(monkeypatch):
    """One thread; and validation scores that rise, fall or stay, whatever is learned."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)

    def score(logits, labels, classes):
        score.epoch += 1
        return {"macro_auc": score.epoch / 10, "loss": score.epoch, "balanced_accuracy": 0.5}

    def restart():
        score.epoch = 0
        AcceleratorState._reset_state(reset_partial_state=True)

    monkeypatch.setattr(trainer, "validation_scores", score)
    yield restart
    torch.set_num_threads(before)


@pytest.fixture
def run(data, params, scripted_scores):
    """Train under options; returns the weights and the curves."""

    def train(options: dict, **knobs):
        scripted_scores()
        options = START | options
        augment = params.train.augment.model_copy(update=options["augment"])
        settings = params.train.model_copy(update=options | {"augment": augment})
        torch.manual_seed(0)
        model = build_model("timm", {"backbone": "test_resnet"} | knobs, len(CLASSES))
        curves = []
        fit(model, data, settings, Setup(CPU), on_epoch=lambda epoch, scores: curves.append(scores))
        return model.state_dict(), curves

    return train


def differ(one, other) -> bool:
    return one[1] != other[1] or any(not torch.equal(tensor, other[0][name]) for name, tensor in one[0].items())


@pytest.mark.parametrize(("option", "value", "under"), OPTIONS)
def test_an_option_changes_the_result(run, option, value, under):
    assert differ(run(under), run(under | {option: value}))


def test_the_same_options_give_the_same_result(run):
    under = {"ema": 0.5, "layer_decay": 0.5, "augment": {"preset": "trivial", "erase": 0.5}, **FROZEN, **MIXED}
    assert not differ(run(under, drop_path=0.5), run(under, drop_path=0.5))


@pytest.mark.parametrize("preset", ["none", "trivial"])
@pytest.mark.parametrize("name", MAGNITUDES)
def test_a_magnitude_changes_the_result(run, name, preset):
    under = {"preset": preset, "flip": False} if name != "preset" else {"preset": preset}
    assert differ(run({"augment": under}), run({"augment": under | {name: MAGNITUDES[name]}}))


@pytest.mark.parametrize("under", [{}, {"frozen_epochs": 1}, {"unfreeze": 0.5, "layer_decay": 0.5}])
def test_drop_path_changes_the_result(run, under):
    assert differ(run(under), run(under, drop_path=0.5))


def test_no_option_is_left_out():
    elsewhere = {"augment", "fraction"}  # MAGNITUDES, and tests/probing/test_stage.py
    assert {option for option, _, _ in OPTIONS} == TrainParams.model_fields.keys() - SAME_ARITHMETIC - elsewhere
    assert MAGNITUDES.keys() == AugmentParams.model_fields.keys()


@pytest.mark.parametrize("alphas", [{"mixup": 0.5}, {"cutmix": 0.5}])
def test_a_batch_of_one_image_has_nothing_to_mix(run, alphas):
    with pytest.raises(
        UserError, match=r"train\.(mixup|cutmix) mixes the images of a batch.*: raise train\.batch_size"
    ):
        run({"batch_size": 1} | alphas)


def test_frozen_norms_of_a_network_with_random_weights_are_warned_of(params, capsys):
    for freeze_norm in (False, True):
        train = params.train.model_copy(update={"freeze_norm": freeze_norm})
        for weights in ("none", "imagenet"):
            model = params.model.model_copy(update={"weights": weights})
            warn(params.model_copy(update={"train": train, "model": model}))
            assert ("train.freeze_norm keeps" in capsys.readouterr().err) == (freeze_norm and weights == "none")
