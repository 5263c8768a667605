"""The loop learns, repeats itself bit for bit, keeps the best epoch, and stops with words."""

import copy
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState

from exp_tools.data.inputs.dataset import EpochOrder
from exp_tools.devices import resolve_precision
from exp_tools.errors import Stopped, UserError
from exp_tools.evaluation.metrics.classification import headline_metrics
from exp_tools.evaluation.predict import predict_logits
from exp_tools.evaluation.validation import softmax, validation_scores
from exp_tools.models.device_images import upload
from exp_tools.models.registry import build_model
from exp_tools.training import checkpoints, loader, trainer
from exp_tools.training.checkpoints import RunStore
from exp_tools.training.distributed import ProcessGroup
from exp_tools.training.interrupts import StopRequest, divergence
from exp_tools.training.loader import Setup, TrainingData, resolve_batch_size
from exp_tools.training.trainer import Trainer, fit

CPU = torch.device("cpu")
CLASSES = ["a", "b", "c", "d"]
IDS = [f"ISIC_{number}" for number in range(8)]


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
    metadata = np.stack([np.linspace(-1, 1, 8), np.arange(8) % 2, np.arange(8) % 3], axis=1).astype(np.float32)
    return TrainingData(path, labels, np.arange(8), np.arange(8), CLASSES, IDS, metadata)


@pytest.fixture
def settings(params):
    return changed(
        params.train, epochs=30, batch_size=4, lr=3e-3, patience=None, sampler="none", augment={"preset": "none"}
    )


def changed(params, **changes):
    augment = changes.pop("augment", {})
    return params.model_copy(update={"augment": params.augment.model_copy(update=augment), **changes})


def network(name="soft_attention", **knobs):
    torch.manual_seed(0)
    defaults = {"soft_attention": {"heads": 2, "dropout": 0.1}, "multimodal": {"sexes": 2, "localizations": 3}}
    return build_model(name, {"backbone": "test_resnet"} | defaults.get(name, {}) | knobs, 4)


def train(data, settings, *, precision="fp32", workers=0, model=None, checkpoint_steps=None, **options):
    AcceleratorState._reset_state(reset_partial_state=True)
    model = network() if model is None else model
    history = []
    setup = Setup(CPU, precision, workers, checkpoint_steps)
    fitted = fit(model, data, settings, setup, on_epoch=lambda epoch, scores: history.append(scores), **options)
    return model, fitted, history


def same_weights(one, other) -> bool:
    return all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())


def test_it_overfits_eight_images(data, settings):
    _, fitted, history = train(data, changed(settings, select_on="accuracy"))
    assert history[-1]["train/loss"] < 0.1 < history[0]["train/loss"]
    assert fitted.best_scores["accuracy"] == 1.0


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_same_seed_gives_the_same_bytes_with_any_workers(data, settings, precision):
    augment = {"preset": "heavy", "erase": 0.5}
    settings = changed(settings, epochs=2, sampler="balanced", mixup=0.3, cutmix=0.5, layer_decay=0.8, augment=augment)
    checkpoints = [train(data, settings, precision=precision, workers=workers) for workers in (0, 0, 2)]
    for model, fitted, history in checkpoints[1:]:
        assert history == checkpoints[0][2]
        assert fitted.best_epoch == checkpoints[0][1].best_epoch
        assert np.array_equal(fitted.logits, checkpoints[0][1].logits)
        assert same_weights(checkpoints[0][0], model)
    other, _, _ = train(data, changed(settings, seed=1), precision=precision)
    assert not torch.equal(other.classifier.weight, checkpoints[0][0].classifier.weight)


def test_the_model_holds_the_best_epoch_not_the_last(data, settings):
    wild = changed(settings, epochs=8, lr=0.05, schedule="constant", select_on="loss")
    model, fitted, history = train(data, wild)
    losses = [scores["val/loss"] for scores in history]
    assert fitted.best_epoch == 1 + int(np.argmin(losses))
    logits = predict_logits(model, data.images, data.val, batch_size=8, device=CPU)
    loss = headline_metrics(softmax(logits), data.labels, CLASSES)["log_loss"]
    assert loss == pytest.approx(min(losses), abs=1e-6)


def test_early_stopping_counts_from_the_best_epoch(data, settings):
    still = changed(settings, lr=1e-30, patience=3, select_on="macro_f1")
    _, fitted, history = train(data, still)
    assert fitted.epochs_run == len(history) == fitted.best_epoch + 3


def test_early_stopping_counts_anew_when_the_backbone_is_unfrozen(data, settings):
    still = changed(settings, lr=1e-30, patience=2, frozen_epochs=6, select_on="macro_f1")
    _, fitted, history = train(data, still)
    assert len(history) == max(6, fitted.best_epoch) + 2


def test_early_stopping_counts_from_the_start_when_nothing_is_ever_unfrozen(data, settings):
    still = changed(settings, lr=1e-30, patience=2, select_on="macro_f1")
    for head_alone in ({"frozen_epochs": 30}, {"frozen_epochs": 6, "unfreeze": 0.0}):
        _, fitted, history = train(data, changed(still, **head_alone))
        assert len(history) == fitted.best_epoch + 2


def test_frozen_means_frozen(data, settings):
    model = network()
    before = copy.deepcopy(model.backbone.state_dict())
    train(data, changed(settings, epochs=2, unfreeze=0.0), model=model)
    assert all(torch.equal(tensor, model.backbone.state_dict()[name]) for name, tensor in before.items())


def test_accumulated_batches_are_one_large_batch(data, settings):
    """With BatchNorm at rest and no dropout, batches of 2, 3 and 3 images in one step equal a batch of 8."""
    settings = changed(
        settings, epochs=2, optimizer="sgd", lr=0.01, unfreeze=0.0, class_weights={"a": 5.0, "c": 0.5}, loss="focal"
    )
    one, _, history = train(data, changed(settings, batch_size=8), model=network(dropout=0.0))
    two, _, other = train(data, changed(settings, batch_size=3, accumulate=3), model=network(dropout=0.0))
    assert [row["train/loss"] for row in history] == pytest.approx([row["train/loss"] for row in other], rel=1e-5)
    for name, tensor in one.state_dict().items():
        torch.testing.assert_close(two.state_dict()[name], tensor, rtol=1e-4, atol=1e-6)


def test_the_average_of_weights_is_validated_and_kept(data, settings):
    settings = changed(settings, epochs=3, select_on="loss", schedule="constant", warmup_epochs=0)
    plain, _, history = train(data, settings)
    averaged, _, smooth = train(data, changed(settings, ema=0.99))
    assert [row["train/loss"] for row in history] == [row["train/loss"] for row in smooth]
    assert not same_weights(plain, averaged)


@pytest.mark.parametrize("decay", [0.5, 0.9])
def test_the_average_by_hand(data, settings, monkeypatch, decay):
    """Averages start short: after t steps the decay is 1 - t^(-2/3), until it is the one asked for."""
    step, biases = Trainer.step, []

    def noted(self, *given):
        step(self, *given)
        biases.append(self.network.classifier.bias.detach().clone())

    monkeypatch.setattr(Trainer, "step", noted)
    settings = changed(settings, epochs=3, ema=decay, select_on="loss", schedule="constant", warmup_epochs=0)
    averaged, fitted, _ = train(data, settings)
    assert fitted.best_epoch == 3
    average = torch.zeros(4)
    for number, bias in enumerate(biases, start=1):
        kept = min(decay, 1 - number ** (-2 / 3))
        average = kept * average + (1 - kept) * bias
    torch.testing.assert_close(averaged.classifier.bias.detach(), average)


def test_statistics_of_batchnorm_are_averaged_with_the_weights_they_belong_to(data, settings, monkeypatch):
    step, noted = Trainer.step, []

    def noting(self, *given):
        step(self, *given)
        noted.append({name: tensor.clone() for name, tensor in self.network.backbone.state_dict().items()})

    monkeypatch.setattr(Trainer, "step", noting)
    settings = changed(settings, epochs=3, ema=0.8, select_on="loss", schedule="constant", warmup_epochs=0)
    averaged, fitted, _ = train(data, settings)
    statistics = [name for name in noted[0] if "running" in name]
    assert fitted.best_epoch == 3
    assert len(statistics) > 4
    for name in statistics:
        average = torch.zeros_like(noted[0][name])
        for number, tensors in enumerate(noted, start=1):
            kept = min(0.8, 1 - number ** (-2 / 3))
            average = kept * average + (1 - kept) * tensors[name]
        torch.testing.assert_close(averaged.backbone.state_dict()[name], average)
        assert not torch.equal(average, noted[-1][name])


def test_the_average_chooses_the_epoch(data, settings, monkeypatch):
    """Scores are those of the averaged weights: a network ruined by its last step is not what is validated."""
    step = Trainer.step

    def ruin(self, *given):
        step(self, *given)
        with torch.no_grad():
            self.network.classifier.bias.add_(1e4 if self.progress.step == self.steps_an_epoch else 0)

    settings = changed(settings, epochs=1, select_on="loss", schedule="constant", warmup_epochs=0, ema=0.9999)
    monkeypatch.setattr(Trainer, "step", ruin)
    model, fitted, _ = train(data, settings)
    logits = predict_logits(model, data.images, data.val, batch_size=8, device=CPU)
    np.testing.assert_allclose(fitted.logits, logits, rtol=1e-5)
    assert fitted.logits.max() < 1e4  # 1 - 2^(-2/3) of the first step's weights are left


def test_a_compiled_network_learns_the_same_and_its_weights_keep_their_names(data, settings, monkeypatch):
    compiled, real = [], torch.compile

    def without_a_compiler(network):
        compiled.append(network)
        return real(network, backend="aot_eager")

    monkeypatch.setattr(torch, "compile", without_a_compiler)
    settings = changed(settings, epochs=2, frozen_epochs=1, ema=0.5, mixup=0.2, checkpointing=True)
    plain, _, history = train(data, settings, model=network("multimodal"))
    assert compiled == []
    model, _, again = train(data, changed(settings, compile=True), model=network("multimodal"))
    assert compiled == [model, model]  # the head alone, then all
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert [row["train/loss"] for row in again] == pytest.approx([row["train/loss"] for row in history], rel=1e-4)
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, rtol=1e-3, atol=1e-5)


def test_checkpointing_changes_no_byte_of_a_run(data, settings):
    settings = changed(settings, epochs=2, frozen_epochs=1, ema=0.5, mixup=0.2, accumulate=2, batch_size=2)
    plain, fitted, history = train(data, settings)
    lean, also, again = train(data, changed(settings, checkpointing=True))
    assert again == history
    assert np.array_equal(fitted.logits, also.logits)
    assert same_weights(plain, lean)


def test_the_average_is_what_is_scored(data, settings):
    settings = changed(settings, epochs=3, select_on="loss", schedule="constant", warmup_epochs=0)
    averaged, fitted, _ = train(data, changed(settings, ema=0.99))
    logits = predict_logits(averaged, data.images, data.val, batch_size=8, device=CPU)
    loss = headline_metrics(softmax(logits), data.labels, CLASSES)["log_loss"]
    assert loss == pytest.approx(fitted.best_scores["loss"], abs=1e-6)


def test_metadata_reach_the_network(data, settings):
    settings = changed(settings, epochs=2)
    one, _, history = train(data, settings, model=network("multimodal"))
    nothing = TrainingData(data.images, data.labels, data.train, data.val, CLASSES, IDS, np.zeros((8, 3), np.float32))
    other, _, without = train(nothing, settings, model=network("multimodal"))
    assert history != without
    assert not same_weights(one, other)


@pytest.mark.parametrize("alphas", [{"mixup": 0.4}, {"cutmix": 1.0}])
def test_mixed_images_come_with_mixed_metadata(data, settings, alphas):
    model, seen = network("multimodal"), []
    model.metadata.register_forward_pre_hook(lambda module, given: seen.append(given) if module.training else None)
    model, _, _ = train(data, changed(settings, epochs=1, **alphas), model=model)
    assert len(seen) == 2
    for own, partners, kept in seen:
        assert torch.equal(partners, own.flip(0))
        assert ((kept > 0) & (kept < 1)).all()
    again, _, _ = train(data, changed(settings, epochs=1, **alphas), model=network("multimodal"))
    assert same_weights(model, again)


def test_a_class_missing_from_train_is_named(data, settings):
    short = TrainingData(data.images, data.labels, np.array([0, 1, 4, 5]), data.val, CLASSES, IDS)
    for sampler in ("none", "balanced"):
        with pytest.raises(UserError, match="train split has no image of c, d"):
            train(short, changed(settings, sampler=sampler))


def test_divergence_names_step_batch_and_cause(data, settings):
    wild = changed(settings, lr=1e30, clip_norm=None, warmup_epochs=0, schedule="constant")
    with pytest.raises(UserError) as caught:
        train(data, wild)
    message = str(caught.value)
    assert "epoch 1, step 2; batch: ISIC_" in message
    assert "the learning rate was 1e+30" in message
    assert "set train.clip_norm" in message


def test_divergence_names_the_batch_among_those_of_a_step(data, settings, monkeypatch):
    inputs, seen = trainer.network_inputs, []

    def spoiled(*given):
        seen.append(given)
        images, *more = inputs(*given)
        return (images * float("nan") if len(seen) == 4 else images, *more)

    monkeypatch.setattr(trainer, "network_inputs", spoiled)
    settings = changed(settings, batch_size=2, accumulate=2)
    order = EpochOrder(data.train, 2, seed=settings.seed)
    order.set_epoch(1)
    fourth = ", ".join(IDS[key.index] for key in list(order)[3])
    with pytest.raises(UserError, match=f"epoch 1, step 2; batch: {fourth}\\)"):
        train(data, settings)


def test_ruined_weights_are_never_saved(data, settings, tmp_path):
    wild = changed(settings, lr=float("inf"), clip_norm=None, warmup_epochs=0, schedule="constant")
    with RunStore(tmp_path, "a", {}) as store:
        with pytest.raises(UserError, match="training diverged"):
            train(data, wild, store=store, checkpoint_steps=1)
        assert store.load() is None


def test_layer_decay_slows_the_backbone_down_also_once_it_is_unfrozen(data, settings, monkeypatch):
    """A step of SGD without momentum is the gradient times the rate; one step an epoch, the first one frozen."""
    step, noted = Trainer.step, []

    def noting(self, *given):
        step(self, *given)
        noted.append(next(self.network.backbone.parameters()).detach().clone())

    monkeypatch.setattr(Trainer, "step", noting)
    plain = {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "clip_norm": None, "schedule": "constant"}
    settings = changed(settings, epochs=2, frozen_epochs=1, batch_size=8, lr=1.0, warmup_epochs=0, **plain)
    moved = []
    for decay in (None, 0.5):
        noted.clear()
        train(data, changed(settings, layer_decay=decay), model=network(dropout=0.0))
        moved.append(noted[1] - noted[0])
    depth = 5  # of the first layer of timm's test_resnet: a stem and four stages of one block
    torch.testing.assert_close(moved[1], moved[0] * 0.5**depth, rtol=1e-3, atol=1e-7)
    assert moved[0].abs().max() > 1e-3


@pytest.mark.parametrize("channels_last", [True, False])
def test_the_memory_layout_is_the_one_asked_for(data, settings, monkeypatch, channels_last):
    model, seen = network(), []
    first = next(part for part in model.backbone.modules() if isinstance(part, torch.nn.Conv2d))
    first.register_forward_hook(lambda module, given, out: seen.append((module.training, out)))
    train(data, changed(settings, epochs=1, channels_last=channels_last), model=model)
    maps = [out for training, out in seen if training]
    assert maps
    assert all(out.is_contiguous(memory_format=torch.channels_last) == channels_last for out in maps)


def test_curves_that_cannot_be_written_end_training_with_the_state_saved(data, settings, tmp_path):
    def full(epoch, scores):
        raise OSError(28, "No space left on device")

    with RunStore(tmp_path, "a", {}) as store:
        with pytest.raises(UserError, match=r"curves could not be written .* Make room on the disk"):
            fit(network(), data, changed(settings, epochs=2), Setup(CPU), store=store, on_epoch=full)
        assert len(store.load()["progress"]["history"]) == 1


def test_a_signal_during_the_last_step_of_an_epoch_ends_before_validation(data, settings, tmp_path, monkeypatch):
    settings = changed(settings, epochs=2)
    whole, _, history = train(data, settings)
    step, stop = Trainer.step, StopRequest()

    def signalled(self, *given):
        step(self, *given)
        stop.signal = 15 if self.progress.step == self.steps_an_epoch else 0

    with monkeypatch.context() as patch, RunStore(tmp_path, "a", {}) as store:
        patch.setattr(Trainer, "step", signalled)
        patch.setattr(Trainer, "predict", None)
        with pytest.raises(Stopped, match="stopped after epoch 1, step 2; the state is saved"):
            train(data, settings, store=store, stop=stop)
    with RunStore(tmp_path, "a", {}) as store:
        resumed, _, again = train(data, settings, store=store)
    assert again == history
    assert same_weights(whole, resumed)


def test_a_stop_whose_state_cannot_be_saved_says_so(data, settings, tmp_path, monkeypatch):
    def full(content, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints.torch, "save", full)
    stop = StopRequest()
    stop.signal = 15
    with RunStore(tmp_path, "a", {}) as store, pytest.raises(Stopped, match="this state could not be saved"):
        train(data, settings, store=store, stop=stop)


def test_the_first_loss_and_half_precision_have_causes_of_their_own(settings):
    assert "look at model.weights first" in str(divergence(1, 1, ["a"], 0.1, settings, "fp32"))
    assert "fp16 overflows" in str(divergence(2, 1, list("abcdef"), 0.1, settings, "fp16"))
    assert "a, b, c, d and 2 more" in str(divergence(2, 1, list("abcdef"), 0.1, settings, "fp16"))


def test_memory_that_is_out_names_the_parameters(data, settings, monkeypatch):
    def step(self, epoch, batches):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    monkeypatch.setattr(Trainer, "step", step)
    with pytest.raises(UserError, match=r"train.batch_size 4: halve it and double train.accumulate"):
        train(data, settings)

    with pytest.raises(UserError, match=r"train.batch_size 8 \(found by auto\): set it to a smaller number, or lower"):
        train(data, changed(settings, batch_size="auto"))


def test_other_errors_stay_what_they_are(data, settings, monkeypatch):
    def step(self, epoch, batches):
        raise RuntimeError("a bug")

    monkeypatch.setattr(Trainer, "step", step)
    with pytest.raises(RuntimeError, match="a bug"):
        train(data, settings)


def test_auto_batch_size_is_the_largest_that_fits(data, settings, monkeypatch):
    tried = []

    def limited(network, data, setup, size):
        tried.append(size)
        if size > 48:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    monkeypatch.setattr(loader, "try_step", limited)
    gpu, many = Setup(torch.device("cuda")), replace(data, train=np.arange(60_000) % 8)
    assert resolve_batch_size(network(), many, gpu, ProcessGroup()) == 32
    assert tried == [1024, 512, 256, 128, 64, 32]
    assert resolve_batch_size(network(), many, Setup(CPU), ProcessGroup()) == 32


@pytest.mark.parametrize(("images", "size"), [(60_000, 1024), (7_011, 128), (1_600, 32), (1_599, 16), (399, 8), (8, 8)])
def test_auto_batch_size_leaves_fifty_steps_an_epoch(data, monkeypatch, images, size):
    monkeypatch.setattr(loader, "try_step", lambda network, data, setup, size: None)
    some = replace(data, train=np.arange(images) % 8)
    assert resolve_batch_size(network(), some, Setup(torch.device("cuda")), ProcessGroup()) == size
    assert resolve_batch_size(network(), some, Setup(CPU), ProcessGroup()) == min(size, 32)


@pytest.mark.parametrize("world", [1, 3, 40])
def test_auto_batch_size_on_a_processor_gives_each_process_an_image(data, world):
    team = ProcessGroup()
    team.world = world
    size = resolve_batch_size(network(), replace(data, train=np.arange(60_000) % 8), Setup(CPU), team)
    assert size == max(1, 32 // world) * world


def test_images_on_the_device_are_there_before_a_batch_size_is_tried(data, settings, monkeypatch):
    seen = []
    monkeypatch.setattr(trainer, "upload", lambda images, device: seen.append("images") or upload(images, device))
    monkeypatch.setattr(trainer, "resolve_batch_size", lambda *given: seen.append("batch") or 8)
    model = network()
    AcceleratorState._reset_state(reset_partial_state=True)
    fit(model, data, changed(settings, epochs=1, batch_size="auto"), Setup(CPU, augment_on_device=True))
    assert seen == ["images", "batch"]


def test_images_on_the_device_train_the_same_network(data, settings):
    changes = {"epochs": 2, "augment": {"preset": "heavy", "erase": 0.5}}
    one, _, curve = train(data, changed(settings, **changes))
    history = []
    other = network()
    AcceleratorState._reset_state(reset_partial_state=True)
    setup = Setup(CPU, augment_on_device=True)
    fit(other, data, changed(settings, **changes), setup, on_epoch=lambda epoch, scores: history.append(scores))
    assert history == curve
    assert same_weights(one, other)


def test_auto_batch_size_says_what_it_took(data, settings, capsys):
    _, fitted, _ = train(data, changed(settings, epochs=1, batch_size="auto"))
    assert fitted.batch_size == 8
    said = capsys.readouterr().out
    assert "train.batch_size auto: 8 images a batch, 1 batches an epoch. train.lr 0.003 is taken as it is" in said
    assert "a factor of the root of 8/B" in said
    train(data, changed(settings, epochs=1, batch_size="auto", optimizer="sgd"))
    assert "a factor of 8/B" in capsys.readouterr().out


def test_trying_a_batch_leaves_the_network_alone(data):
    model = network()
    before = copy.deepcopy(model.state_dict())
    loader.try_step(model, data, Setup(CPU), 4)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in before.items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_second_signal_acts_at_once():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGTERM)
        assert stop.signal == signal.SIGTERM
        assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_under_torchrun_two_signals_are_one(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert stop.signal == signal.SIGTERM


AMX = {"avx512_bf16": True, "amx_bf16": True, "amx_tile": True}
ZEN4 = {"cpu_name": "AMD EPYC", "avx512_bf16": True, "amx_bf16": False}


@pytest.mark.parametrize(
    ("flags", "depthwise", "precision"),
    [
        (AMX, 0.0, "bf16"),
        (AMX, 0.01, "bf16"),  # EfficientNetV2-S
        (AMX, 0.06, "fp32"),  # E-MAS and other networks of depthwise convolutions: slower in bf16 even with AMX
        ({"avx512_bf16": True, "amx_bf16": False, "amx_tile": False}, 0.0, "fp32"),  # half as fast in bf16 on a Xeon
        ({"avx512_bf16": True}, 0.0, "fp32"),
        (AMX | {"amx_tile": False}, 0.0, "fp32"),  # the system does not let programs use the tiles
        ({"cpu_name": "Intel(R) Xeon(R)", "avx512_bf16": True}, 0.0, "fp32"),
        (ZEN4, 0.0, "bf16"),  # 1.85 times as fast with ResNet-18
        (ZEN4, 0.06, "fp32"),  # EfficientNet-Lite0: half as fast in bf16
        (ZEN4 | {"avx512_bf16": False}, 0.0, "fp32"),  # Zen 3
        ({"avx2": True}, 0.0, "fp32"),
        ({}, 0.0, "fp32"),
    ],
)
def test_precision_is_decided_by_what_processor_and_network_have(monkeypatch, flags, depthwise, precision):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags, raising=False)
    assert resolve_precision("auto", CPU, lambda: depthwise) == precision


def test_precision_without_flags_and_by_hand(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert resolve_precision("auto", CPU, lambda: 0.0) == "fp32"
    assert resolve_precision("bf16", CPU, lambda: 1.0) == "bf16"
    with pytest.raises(UserError, match="needs a CUDA GPU"):
        resolve_precision("fp16", CPU, lambda: 0.0)


def test_scores_of_validation_that_are_no_numbers_stop(data):
    with pytest.raises(UserError, match="not finite"):
        validation_scores(np.full((8, 4), np.nan), data.labels, data.classes)
