"""The loop learns, repeats itself bit for bit, keeps the best epoch, and stops with words."""

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState

from exp_tools.errors import UserError
from exp_tools.models.registry import build_model
from exp_tools.training.loop import TrainingData, fit
from exp_tools.training.losses import class_weights, make_loss
from exp_tools.training.machine import resolve_precision
from exp_tools.training.optim import learning_rate_factor, make_optimizer

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


def test_class_weights_are_inverse_frequencies():
    np.testing.assert_allclose(class_weights(np.array([0, 0, 0, 1]), ["a", "b"]), [4 / 6, 4 / 2])
    loss = make_loss("class_weights", np.array([0, 0, 0, 1]), ["a", "b"], 0.0)
    logits = torch.zeros(2, 2)
    # both images cost ln 2; weighted mean over weights 2/3 and 2 is ln 2 again
    assert loss(logits, torch.tensor([0, 1])).item() == pytest.approx(np.log(2))
    sharp = torch.tensor([[2.0, 0.0], [2.0, 0.0]])
    low, high = np.log(1 + np.exp(-2)), np.log(1 + np.exp(2))
    expected = (low * 2 / 3 + high * 2) / (2 / 3 + 2)
    assert loss(sharp, torch.tensor([0, 1])).item() == pytest.approx(expected, rel=1e-6)


def test_schedule_rises_then_falls(settings):
    settings = settings.model_copy(update={"epochs": 10, "warmup_epochs": 2, "schedule": "cosine"})
    factors = [learning_rate_factor(step, steps_an_epoch=5, params=settings) for step in range(50)]
    assert factors[0] == pytest.approx(1 / 11)
    assert factors[9] == pytest.approx(10 / 11)
    assert factors[10] == 1.0
    assert factors[30] == pytest.approx(0.5)
    assert factors[49] < 0.01
    assert np.all(np.diff(factors[10:]) < 0)
    constant = settings.model_copy(update={"schedule": "constant"})
    assert learning_rate_factor(49, steps_an_epoch=5, params=constant) == 1.0


def test_weight_decay_spares_scalars_biases_and_norms(settings):
    model = build_model("soft_attention", {"backbone": "test_resnet"}, 4)
    groups = make_optimizer(model, settings).param_groups
    bare = {id(parameter) for group in groups if group["weight_decay"] == 0 for parameter in group["params"]}
    for name, parameter in model.named_parameters():
        assert (id(parameter) in bare) == (parameter.ndim <= 1), name


def test_precision_is_decided_by_the_processor(monkeypatch):
    for capable, precision in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr("exp_tools.training.machine.cpu_has_bf16", lambda capable=capable: capable)
        assert resolve_precision("auto", CPU) == precision
    assert resolve_precision("bf16", CPU) == "bf16"
    with pytest.raises(UserError, match="needs a CUDA GPU"):
        resolve_precision("fp16", CPU)
