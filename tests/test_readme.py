"""The README's commands run as written, in their order, in a project that ran.

A fence "bash" is run. A second word on it says why not (make: a target of the Makefile; network; data: needs a copy of
a data set; setup: the reader's own machine); tests/test_docs.py then checks its parameters and sub-commands.
"""

import json
import re
import shlex

import pytest
import yaml
from helpers.project import ROOT, TINY, Project, merge

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
    shown = {}
    for command in ran:
        if " -S " in command:  # the reader's values are kept, the size of the test's run too
            command += _keep_it_small(command)
        done = project.run("bash", "-c", command, check="--explain" not in command)
        # At the test's 32 pixels the last map has one position, of which no heat map is drawn.
        assert done.returncode == 0 or "single position" in done.stderr, done.stderr
        shown[command] = done.stdout
    assert "macro_auc" in shown["dvc metrics diff HEAD timm"]

    table = project.run("dvc", "exp", "show", "--csv", "--only-changed").stdout
    assert "timm" in table
    assert "model.name" in table.splitlines()[0]
    assert "model.name" in project.run("dvc", "params", "diff", "HEAD", "timm").stdout
    project.run("dvc", "plots", "diff", "HEAD", "timm")


def _keep_it_small(command: str) -> str:
    return " -S model.soft_attention.backbone=test_resnet" if "image_size=" in command else ""


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = re.findall(r"\bmake ([a-z]+)", "\n".join(commands("make", "", "setup")))
    assert {"repro", "test"} <= set(named) <= targets


def test_tiny_settings_are_valid():
    content = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    merge(content, TINY)
    parse_params(content)


def test_the_scores_it_prints_are_those_in_git():
    """What stands there of `dvc metrics show` is of the metrics files as they are."""
    lines = [line.split() for line in README.splitlines() if line.startswith(("Path  ", "metrics/"))]
    names, rows = lines[0][1:], [line for line in lines[1:] if line[0].endswith(".json")]
    assert [row[0] for row in rows] == ["metrics/validation.json", "metrics/evaluate.json"]
    for path, *shown in rows:
        scores = json.loads((ROOT / path).read_text(encoding="utf-8"))
        assert shown == [str(round(scores[name], 5)) if name in scores else "-" for name in names]
