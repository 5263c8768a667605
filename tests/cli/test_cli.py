"""`exp-tools`: its answers, its exit statuses, and that asking for help loads nothing."""

import json
import subprocess
import sys

import pytest
from helpers.project import ROOT

from exp_tools.cli import main as cli
from exp_tools.errors import UserError

MODELS = [
    {
        "name": "soft_attention",
        "parameters": 11_180_000,
        "outside_backbone": 3_500,
        "multiply_adds": 1_816_000_000,
        "image_size": 224,
        "summary": "attention maps on a backbone",
    },
    {
        "name": "timm",
        "parameters": 950,
        "outside_backbone": 10,
        "multiply_adds": 12_345_678_901,
        "image_size": 1024,
        "summary": "any backbone, linear head",
    },
]


@pytest.fixture
def two_models(monkeypatch):
    registry = pytest.importorskip("exp_tools.models.registry")
    monkeypatch.setattr(registry, "describe_models", lambda: MODELS)


def test_models_are_an_aligned_table(two_models, capsys):
    assert cli.main(["models"]) == 0
    assert capsys.readouterr().out == (
        "name            parameters  outside the backbone  multiply-adds       at  what it is\n"
        "soft_attention  11,180,000                 3,500         1.82 G   224 px  attention maps on a backbone\n"
        "timm                   950                    10        12.35 G  1024 px  any backbone, linear head\n"
    )


def test_models_as_json(two_models, capsys):
    assert cli.main(["models", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == MODELS


def test_the_real_models_have_names_sizes_and_summaries(capsys):
    assert cli.main(["models", "--json"]) == 0
    models = {model["name"]: model for model in json.loads(capsys.readouterr().out)}
    assert {"soft_attention", "timm"} <= models.keys()
    assert all(model["parameters"] > 1_000 and model["summary"] for model in models.values())


def test_a_misspelt_command_is_answered_with_the_right_one(capsys):
    assert cli.main(["modles"]) == 2
    assert "did you mean 'models'?" in capsys.readouterr().err
    assert cli.main(["xyz"]) == 2
    message = capsys.readouterr().err
    assert "doctor, data, models" in message
    assert "did you mean" not in message


def test_an_error_that_the_user_can_mend_is_one_message_and_status_1(two_models, monkeypatch, capsys):
    def fail():
        raise UserError("model.name is 'emass'; choose one of soft_attention, timm")

    monkeypatch.setattr("exp_tools.models.registry.describe_models", fail)
    assert cli.main(["models"]) == 1
    captured = capsys.readouterr()
    assert captured.err == "error: model.name is 'emass'; choose one of soft_attention, timm\n"
    assert captured.out == ""


def test_without_a_command_usage_is_shown_with_status_2(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([])
    assert stop.value.code == 2
    assert "usage: exp-tools" in capsys.readouterr().err


def test_help_loads_no_library():
    script = (
        "import sys; from exp_tools.cli.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'numpy', 'pandas', 'pydantic', 'dvc', 'yaml'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "doctor" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "exp_tools.cli", "nonsense"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "no command 'nonsense'" in done.stderr


def test_help_shows_every_command_under_its_group(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    shown = capsys.readouterr().out
    for group in ("set up and train:", "evaluate and compare:", "use a trained model:"):
        assert f"\n{group}\n" in shown
    for name in cli._parser()[1]:
        assert f"\n  {name} " in shown


@pytest.mark.parametrize("name", cli._parser()[1])
def test_help_of_a_command_ends_with_an_example(name, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([name, "--help"])
    assert ended.value.code == 0
    *_, title, example = capsys.readouterr().out.rstrip().splitlines()
    assert title == "example:"
    assert f"exp-tools {name}" in example


@pytest.mark.parametrize("command", ["recipe", "--help"])
def test_a_reader_that_stops_early_is_no_error(command):
    """As `exp-tools … | head` does."""
    started = [sys.executable, "-m", "exp_tools.cli", command]
    process = subprocess.Popen(started, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 0
