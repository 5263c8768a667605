"""Recipes: each is a valid, complete change of the parameters, reaches DVC through a shell unharmed, and trains."""

import math
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from helpers.project import ROOT, TINY, Project, clone, merge

import stages.features
import stages.split
import stages.train
from exp_tools.cli import main as cli
from exp_tools.errors import UserError
from exp_tools.models.model_file import read_facts
from exp_tools.models.registry import build_model
from exp_tools.params import AugmentParams, TrainParams, parse_params
from exp_tools.recipes import REFUSED_BY_DVC, Recipe, find_recipe, list_recipes, merged, words
from exp_tools.training.freezing import apply_phase
from exp_tools.training.optim import learning_rate

RECIPES = {recipe.name: recipe for recipe in list_recipes(ROOT)}
each_recipe = pytest.mark.parametrize("name", RECIPES)


def applied(content: dict, arguments: list[str], folder: Path) -> dict:
    """The content of a parameter file after DVC itself has changed it as `-S …` arguments say."""
    from dvc.utils.hydra import apply_overrides

    file = folder / "params.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    apply_overrides(file, [argument.removeprefix("-S ") for argument in arguments])
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def test_the_five_systems_the_paper_and_three_ways_to_fine_tune_are_here():
    assert set(RECIPES) == {
        "soft_attention_paper",
        "emas",
        "multimodal",
        "soft_attention",
        "efficientnet_v2",
        "melanoma",
        "vit_probe",
        "dinov2_probe",
        "panderm_probe",
        "lite0",
        "convnext_finetune",
        "reference",
    }


@each_recipe
def test_a_recipe_changes_what_it_says_and_nothing_else(name, params):
    changed = merged(RECIPES[name], params).model_dump()
    before = params.model_dump()
    for section in ("data", "split", "evaluate", "machine"):
        assert changed[section] == before[section]
    assert changed["train"]["seed"] == before["train"]["seed"]
    expected = params.model_dump()
    merge(expected, RECIPES[name].changes)
    assert merged(RECIPES[name], params) == parse_params(expected)


@each_recipe
def test_a_recipe_leaves_no_choice_to_what_was_there_before(name, params):
    changes, train = RECIPES[name].changes, merged(RECIPES[name], params).train
    architecture = changes["model"]["name"]
    unread = {"seed", "precision", "channels_last", "checkpointing", "compile", "deterministic"}
    if architecture == "probe":  # a linear head is fitted to its end
        unread |= {"epochs", "batch_size", "accumulate", "optimizer", "lr", "weight_decay", "eps", "schedule"}
        unread |= {"warmup_epochs", "min_lr", "frozen_epochs", "frozen_lr", "unfreeze", "clip_norm", "augment"}
        unread |= {"layer_decay", "freeze_norm"}
    unread |= {"momentum"} if train.optimizer != "sgd" else set()
    unread |= {"focal_gamma"} if train.loss != "focal" else set()
    unread |= {"restart_epochs", "restart_factor"} if train.schedule != "warm_restarts" else set()
    unread |= {"plateau_factor", "plateau_patience"} if train.schedule != "plateau" else set()
    assert changes["train"].keys() == TrainParams.model_fields.keys() - unread
    assert architecture == "probe" or changes["train"]["augment"].keys() == AugmentParams.model_fields.keys()
    assert changes["model"].keys() == {"name", "weights", architecture}
    assert changes["model"][architecture].keys() == getattr(params.model, architecture).model_dump().keys()
    assert changes.keys() == {"task", "prepare", "model", "train"}


def test_published_figures(params):
    read = {name: merged(recipe, params) for name, recipe in RECIPES.items()}
    paper = read["soft_attention_paper"].train
    assert (paper.optimizer, paper.lr, paper.eps, paper.class_weights) == ("adam", 0.01, 0.1, {"mel": 5})
    assert (paper.epochs, paper.patience) == (150, 30)
    emas = read["emas"].train
    assert (emas.optimizer, emas.lr, emas.weight_decay, emas.epochs, emas.patience) == ("adam", 1e-3, 1e-4, 40, 7)
    assert (emas.schedule, emas.plateau_factor, emas.plateau_patience) == ("plateau", 0.5, 3)
    both = read["multimodal"].train
    assert (both.frozen_epochs, both.frozen_lr, both.epochs, both.lr, both.unfreeze) == (5, 1e-4, 35, 1e-5, 0.3)
    focal = read["efficientnet_v2"].train
    assert (focal.loss, focal.focal_gamma, focal.weight_decay, focal.clip_norm) == ("focal", 2, 0.05, 1)
    assert (focal.restart_epochs, focal.restart_factor, focal.min_lr, focal.epochs) == (10, 2, 1e-6, 30)
    binary = read["melanoma"]
    assert (binary.task, binary.model.efficientnet_v2.head, binary.train.accumulate) == ("melanoma", "linear", 4)
    assert {name: one.prepare.image_size for name, one in read.items()} == {
        "soft_attention_paper": 299,
        "emas": 224,
        "multimodal": 384,
        "soft_attention": 224,
        "efficientnet_v2": 224,
        "melanoma": 380,
        "vit_probe": 224,
        "dinov2_probe": 224,
        "panderm_probe": 224,
        "lite0": 224,
        "convnext_finetune": 224,
        "reference": 128,
    }
    keras = read["lite0"]
    assert (keras.train.frozen_lr, keras.train.lr, keras.train.freeze_norm) == (0.01, 1e-5, True)
    convnext = read["convnext_finetune"]
    assert (convnext.train.lr, convnext.train.layer_decay, convnext.model.timm.drop_path) == (5e-5, 0.8, 0.1)
    assert (convnext.train.mixup, convnext.train.cutmix, convnext.train.label_smoothing) == (0.8, 1.0, 0.1)
    assert (convnext.train.ema, convnext.train.augment.erase, convnext.train.weight_decay) == (0.9999, 0.25, 1e-8)


def test_the_papers_warm_up_makes_up_for_keras_adam(params):
    """Keras: lr √(1 - β2^t) / (1 - β1^t) m / (√v + ε). torch: lr / (1 - β1^t) m / (√(v / (1 - β2^t)) + ε). For ε far
    above √v the second is 1 / √(1 - β2^t) as long."""
    train = merged(RECIPES["soft_attention_paper"], params).train
    steps_an_epoch = -(-7010 // train.batch_size)
    rates = [learning_rate(step, steps_an_epoch=steps_an_epoch, params=train) / train.lr for step in range(20_000)]
    keras = [math.sqrt(1 - 0.999**step) for step in range(1, 20_001)]
    assert [round(1 / keras[step - 1], 1) for step in (1, 100, 1000)] == [31.6, 3.2, 1.3]
    assert sum(rates) == pytest.approx(sum(keras), abs=10)
    assert sum(1 - rate for rate in keras) > 600


def test_what_lite0_unfreezes_is_the_last_block_and_the_convolution_behind_it(params):
    recipe = merged(RECIPES["lite0"], params)
    with torch.device("meta"):
        model = build_model("timm", recipe.model.architecture, 7)
    apply_phase(model, recipe.train.frozen_epochs + 1, recipe.train)
    learning = {name for name, parameter in model.backbone.network.named_parameters() if parameter.requires_grad}
    last = {
        name for name, _ in model.backbone.network.named_parameters() if name.startswith(("blocks.6.", "conv_head"))
    }
    assert learning == {name for name in last if ".bn" not in name}


@each_recipe
def test_dvc_reads_the_words_as_the_recipe_is_meant(name, content, params, tmp_path):
    after = applied(content, words(RECIPES[name], ROOT), tmp_path)
    assert parse_params(after) == merged(RECIPES[name], params)


def test_one_recipe_after_another_is_the_other_alone(content, params, tmp_path):
    content["train"]["class_weights"] = {"nv": 2, "df": 3}
    for name in (*RECIPES, *reversed(RECIPES)):
        content = applied(content, words(RECIPES[name], ROOT), tmp_path)
        after, alone = parse_params(content), merged(RECIPES[name], params)
        named = RECIPES[name].changes["train"]
        assert {key: getattr(after.train, key) for key in named} == {key: getattr(alone.train, key) for key in named}
        assert after.model.architecture == alone.model.architecture


def test_every_kind_of_value_survives_dvc(content, tmp_path):
    for folder in ("recipes", "after"):
        (tmp_path / folder).mkdir()
    shutil.copy(ROOT / "params.yaml", tmp_path)
    changes = {
        "split": {"fractions": [0.6, 0.25, 0.15], "stratify": ["dx", "sex"]},
        "model": {"weights": "models/old-1.safetensors"},
        "train": {"class_weights": {"mel": 5, "nv": 0.5}, "lr": 3e-7, "ema": 0.999, "clip_norm": None, "epochs": 7},
        "prepare": {"duplicates": "off", "clahe": True},
        "data": {"external": {}},
    }
    (tmp_path / "recipes" / "odd.yaml").write_text("# odd\n" + yaml.safe_dump(changes), encoding="utf-8")
    odd = find_recipe(tmp_path, "odd")
    after = parse_params(applied(content, words(odd, tmp_path), tmp_path / "after"))
    assert after == merged(odd, parse_params(content))
    assert after.split.fractions == [0.6, 0.25, 0.15]
    assert after.train.class_weights == {"mel": 5, "nv": 0.5}
    assert all(len(word.split()) == 2 for word in words(odd, tmp_path))


@pytest.mark.parametrize("text", ["my model.pth", "null", "1e5", "a=b", "x'y", "true", "weights,old", ""])
def test_text_that_dvc_would_read_otherwise_is_refused(text, tmp_path):
    shutil.copy(ROOT / "params.yaml", tmp_path)
    with pytest.raises(UserError, match=r"model\.weights is .*write it into params\.yaml"):
        words(Recipe("odd", "odd", {"model": {"weights": text}}), tmp_path)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"train": {"optimiser": "adam"}}, r"recipes/odd\.yaml: train\.optimiser is unknown.*did you mean 'optimizer'"),
        ({"train": {"sampler": "balance"}}, "train.sampler is 'balance'.*did you mean 'balanced'"),
        ({"train": 3}, "train"),
        ({"training": {"lr": 1}}, "training is unknown"),
    ],
)
def test_a_fault_in_a_recipe_is_named(changes, complaint, params):
    with pytest.raises(UserError, match=complaint):
        merged(Recipe("odd", "odd", changes), params)


def test_a_recipe_without_a_first_line_is_refused(tmp_path):
    (tmp_path / "recipes").mkdir()
    file = tmp_path / "recipes" / "bare.yaml"
    for text in ("train: {lr: 1}\n", "", "# only a comment\n"):
        file.write_text(text)
        with pytest.raises(UserError, match=r"bare\.yaml: a recipe is a comment"):
            list_recipes(tmp_path)
    file.write_text("# a\ntrain: [")
    with pytest.raises(UserError, match="not valid YAML"):
        list_recipes(tmp_path)


def test_the_command_lists_and_prints(monkeypatch, capsys):
    monkeypatch.chdir(ROOT / "exp_tools")
    assert cli.main(["recipe"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == sorted(RECIPES)
    assert all(len(line) <= 120 for line in lines)
    assert cli.main(["recipe", "emas"]) == 0
    printed = capsys.readouterr().out.split("\n")
    assert printed[:3] == ["-S task=diagnosis", "-S prepare.image_size=224", "-S model.name=emas"]
    assert "-S train.clip_norm=null" in printed


def test_an_unknown_recipe_is_answered_and_stops_dvc(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(ROOT)
    assert cli.main(["recipe", "emass"]) == 1
    captured = capsys.readouterr()
    assert "no recipe 'emass'" in captured.err
    assert "did you mean 'emas'?" in captured.err
    assert captured.out == REFUSED_BY_DVC + "\n"
    monkeypatch.chdir(tmp_path)
    assert cli.main(["recipe"]) == 1
    assert "no recipes in" in capsys.readouterr().err


def test_a_shell_hands_a_recipe_to_dvc_whole(tmp_path):
    project = clone(tmp_path / "project", TINY)

    def queue(arguments: str) -> dict:
        """Parameters of the experiment that a shell command queues."""
        project.run("sh", "-c", f"dvc exp run --queue {arguments}")
        shown = project.run("git", "show", "refs/exps/celery/stash:params.yaml")
        return yaml.safe_load(shown.stdout)

    start = parse_params(yaml.safe_load((project.folder / "params.yaml").read_text()))
    queued = parse_params(queue("$(exp-tools recipe soft_attention_paper) -S train.epochs=3"))
    assert queued.train.epochs == 3
    paper = merged(RECIPES["soft_attention_paper"], start)
    assert queued == paper.model_copy(update={"train": paper.train.model_copy(update={"epochs": 3})})
    swept = parse_params(queue("$(exp-tools recipe soft_attention_paper) -S train.lr=1e-2,1e-3"))
    assert (swept.train.lr, swept.train.class_weights) in [(0.01, {"mel": 5}), (0.001, {"mel": 5})]
    stopped = project.run("sh", "-c", "dvc exp run --queue $(exp-tools recipe emass)", check=False)
    assert stopped.returncode != 0
    assert "did you mean 'emas'?" in stopped.stderr


SMALL = {
    "prepare": {"image_size": 32},
    "model": {
        "weights": "none",
        "soft_attention": {"backbone": "test_resnet"},
        "multimodal": {"backbone": "test_efficientnet"},
        "probe": {"encoders": [{"backbone": "test_vit", "weights": "none"}]},
        "timm": {"backbone": "test_convnext2"},
    },
    "train": {"epochs": 2, "batch_size": 16, "precision": "fp32"},
}
CONSTANT_RATES = {
    "lite0": [0.01, 1e-5],
    "soft_attention": [0.01, 0.01],
    "emas": [0.001, 0.001],
    "multimodal": [1e-4, 1e-5],  # the frozen epoch, then the rest
    "melanoma": [0.001, 0.001],
}
WARMED_UP = {"soft_attention_paper": 0.01, "reference": 7e-4}


@pytest.fixture(scope="module")
def data_project(ran_project, tmp_path_factory) -> Project:
    """A project with prepared data whose training can be run again and again."""
    return ran_project.copy(tmp_path_factory.mktemp("recipes") / "project")


@each_recipe
def test_a_recipe_trains(name, data_project, monkeypatch):
    file = data_project.folder / "params.yaml"
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    merge(content, merged(RECIPES[name], parse_params(content)).model_dump())
    merge(content, SMALL)
    if content["train"]["freeze_norm"]:
        content["model"]["timm"]["backbone"] = "test_efficientnet"  # which has BatchNorm
    content["train"]["frozen_epochs"] = min(content["train"]["frozen_epochs"], 1)
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    shutil.rmtree(data_project.folder / "metrics" / "train", ignore_errors=True)
    (data_project.folder / "models" / "network.safetensors").unlink(missing_ok=True)
    monkeypatch.chdir(data_project.folder)
    stages.features.main()
    stages.split.main()
    stages.train.main()

    facts = read_facts(data_project.folder / "models" / "network.safetensors")
    assert facts.architecture == RECIPES[name].changes["model"]["name"]
    dx = set(pd.read_csv(data_project.folder / "data" / "prepared" / "labels.csv")["dx"])
    assert set(facts.classes) == ({"mel", "non_mel"} if name == "melanoma" else dx)
    curves = data_project.folder / "metrics" / "train" / "plots" / "metrics"
    loss = pd.read_csv(curves / "val" / "loss.tsv", sep="\t")["loss"]
    assert loss.between(0, 100).all()
    if facts.architecture == "probe":
        assert len(loss) == facts.training["epochs_run"] > 2
        return
    assert len(loss) == 2
    rates = pd.read_csv(curves / "train" / "lr.tsv", sep="\t")["lr"].tolist()
    if name in CONSTANT_RATES:
        assert rates == pytest.approx(CONSTANT_RATES[name])
    elif name in WARMED_UP:
        assert 0 < rates[0] < rates[1] <= WARMED_UP[name]
    else:
        assert 1e-6 <= rates[1] < rates[0] <= 1e-4
