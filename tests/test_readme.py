"""The README's commands run as written, in their order, in a project that ran.

A fence "bash" is run. A second word on it says why not (make: a target of the Makefile; network; data: needs a copy of
a data set; setup: the reader's own machine); then its parameters, sub-commands and targets are checked instead.
"""

import itertools
import re
import shlex

import pytest
import yaml
from helpers.project import ROOT, TINY, Project, merge

from exp_tools.cli.main import _parser
from exp_tools.params import parse_params

FENCE = re.compile(r"^```bash *(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
README = (ROOT / "README.md").read_text(encoding="utf-8")


def commands(*kinds: str) -> list[str]:
    """Command lines of the fences of these kinds, without comments, joined where a line goes on."""
    lines = []
    for kind, body in FENCE.findall(README):
        if kind in kinds:
            lines += [line.strip() for line in body.replace("\\\n", " ").splitlines()]
    return [shlex.join(shlex.split(line, comments=True)) for line in lines if line and not line.startswith("#")]


@pytest.fixture(scope="module")
def project(ran_project, tmp_path_factory) -> Project:
    project = ran_project.copy(tmp_path_factory.mktemp("readme") / "project")
    project.run("git", "remote", "add", "origin", str(ran_project.folder))
    return project


def test_every_command_runs_as_written(project):
    ran = commands("")
    assert len(ran) >= 10
    for command in ran:
        if " -S " in command:  # the reader's values are kept, the size of the test's run too
            command += _keep_it_small(command)
        project.run("bash", "-c", command)


def _keep_it_small(command: str) -> str:
    return " -S model.soft_attention.backbone=test_resnet" if "image_size=" in command else ""


def test_parameters_of_commands_that_do_not_run_here_are_valid():
    content = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    checked = 0
    for command in commands("data", "network"):
        settings = re.findall(r"-S (?:'([^']+)'|(\S+))", command)
        choices = [sweep(*(quoted or plain).split("=", 1)) for quoted, plain in settings]
        for chosen in itertools.product(*choices):
            changed = yaml.safe_load(yaml.safe_dump(content))
            for overrides in chosen:
                merge(changed, overrides)
            parse_params(changed, f"README: {command}")
        checked += len(settings)
    assert checked >= 5


def sweep(key: str, value: str) -> list[dict]:
    """The overrides that one `-S key=value` stands for: several where it is a range or a list of choices."""
    if bounds := re.fullmatch(r"range\((\d+), *(\d+)\)", value):
        values: list = list(range(*map(int, bounds.groups())))
    else:
        values = [yaml.safe_load(part) for part in value.split(",")]
    for section in reversed(key.split(".")):
        values = [{section: one} for one in values]
    return values


def test_a_sweep_is_taken_apart():
    assert sweep("split.fold", "range(0,2)") == [{"split": {"fold": 0}}, {"split": {"fold": 1}}]
    assert sweep("model.name", "timm,emas") == [{"model": {"name": "timm"}}, {"model": {"name": "emas"}}]
    assert sweep("train.lr", "0.1") == [{"train": {"lr": 0.1}}]


def test_make_targets_and_sub_commands_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = re.findall(r"\bmake ([a-z]+)", "\n".join(commands("make", "", "setup")))
    assert {"repro", "test"} <= set(named) <= targets
    known = _parser()[1]
    for command in re.findall(r"`exp-tools ([a-z]+)", README) + re.findall(
        r"^exp-tools ([a-z]+)", README, re.MULTILINE
    ):
        assert command in known


def test_every_file_that_is_named_exists():
    for name in re.findall(r"\]\((?!https?:|#)([^)#]+)\)", README):
        assert (ROOT / name).exists(), name


def test_tiny_settings_are_valid():
    content = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    merge(content, TINY)
    parse_params(content)
