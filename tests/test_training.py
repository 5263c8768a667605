"""The loop learns, repeats itself bit for bit, keeps the best epoch, and stops with words."""

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState

from exp_tools.errors import UserError
from exp_tools.models.registry import build_model
from exp_tools.training.loop import TrainingData, fit
from exp_tools.training.machine import resolve_precision

CPU = torch.device("cpu")
CLASSES = ["a", "b", "c", "d"]


@pytest.fixture(autouse=True)
def one_thread_and_a_fresh_accelerator():
    """Tiny networks lose time on a second thread, and accelerate allows one precision a process."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def data(packed):
    path, labels = packed
    return TrainingData(path, labels, np.arange(8), np.arange(8), CLASSES)


@pytest.fixture
def settings(params):
    augment = params.train.augment.model_copy(update={"preset": "none"})
    return params.train.model_copy(
        update={"epochs": 30, "batch_size": 4, "lr": 3e-3, "patience": None, "augment": augment, "balance": "none"}
    )


def train(data, settings, *, precision="fp32", workers=0, **knobs):
    torch.manual_seed(settings.seed)
    model = build_model("soft_attention", {"backbone": "test_resnet", "heads": 2, "dropout": 0.1} | knobs, 4)
    history = []
    fitted = fit(
        model,
        data,
        settings,
        device=CPU,
        precision=precision,
        workers=workers,
        on_epoch=lambda epoch, scores: history.append(scores),
    )
    return model, fitted, history


def test_it_overfits_eight_images(data, settings):
    _, fitted, history = train(data, settings)
    assert history[-1]["train/loss"] < 0.1 < history[0]["train/loss"]
    assert fitted.best_scores["accuracy"] == 1.0


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_same_seed_gives_the_same_bytes_with_any_workers(data, settings, precision):
    settings = settings.model_copy(
        update={
            "epochs": 2,
            "balance": "weighted_sampler",
            "augment": settings.augment.model_copy(update={"preset": "heavy"}),
        }
    )
    runs = [train(data, settings, precision=precision, workers=workers) for workers in (0, 0, 2)]
    for model, fitted, history in runs[1:]:
        assert history == runs[0][2]
        assert fitted == runs[0][1]
        for name, tensor in runs[0][0].state_dict().items():
            assert torch.equal(tensor, model.state_dict()[name]), name
    other, _, _ = train(data, settings.model_copy(update={"seed": 1}), precision=precision)
    assert not torch.equal(other.classifier.weight, runs[0][0].classifier.weight)


def test_the_model_holds_the_best_epoch_not_the_last(data, settings):
    from exp_tools.evaluation.calibration import softmax
    from exp_tools.evaluation.metrics import headline_metrics
    from exp_tools.evaluation.predict import predict_logits

    wild = settings.model_copy(update={"epochs": 8, "lr": 0.05, "schedule": "constant", "select_on": "loss"})
    model, fitted, history = train(data, wild)
    losses = [scores["val/loss"] for scores in history]
    assert fitted.best_epoch == 1 + int(np.argmin(losses))
    logits = predict_logits(model, data.images, data.val, batch_size=8, device=CPU)
    loss = headline_metrics(softmax(logits), data.labels, CLASSES)["log_loss"]
    assert loss == pytest.approx(min(losses), abs=1e-6)


def test_early_stopping_counts_from_the_best_epoch(data, settings):
    still = settings.model_copy(update={"lr": 1e-30, "patience": 3, "select_on": "macro_f1"})
    _, fitted, history = train(data, still)
    assert fitted.epochs_run == len(history) == fitted.best_epoch + 3


def test_a_class_missing_from_train_is_named(data, settings):
    short = TrainingData(data.images, data.labels, np.array([0, 1, 4, 5]), data.val, CLASSES)
    for balance in ("none", "class_weights", "weighted_sampler"):
        with pytest.raises(UserError, match="train split has no image of c, d"):
            train(short, settings.model_copy(update={"balance": balance}))


def test_divergence_stops_with_words(data, settings):
    with pytest.raises(UserError, match=r"no finite number any more|not finite"):
        train(data, settings.model_copy(update={"lr": 1e30, "clip_norm": None, "warmup_epochs": 0}))


def test_precision_is_decided_by_the_processor(monkeypatch):
    for capable, precision in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr("exp_tools.training.machine.cpu_has_bf16", lambda capable=capable: capable)
        assert resolve_precision("auto", CPU) == precision
    assert resolve_precision("bf16", CPU) == "bf16"
    with pytest.raises(UserError, match="needs a CUDA GPU"):
        resolve_precision("fp16", CPU)
