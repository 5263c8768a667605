"""Every page of documentation: its commands are valid, its parameters exist and take the values, its links lead."""

import itertools
import re
import subprocess
from collections.abc import Iterable

import pytest
import yaml
from helpers.project import ROOT, merge

from exp_tools.cli.main import _parser
from exp_tools.params import parse_params

PAGES = sorted([*ROOT.glob("docs/*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "DATA_LICENSES.md"])
FENCE = re.compile(r"^ *```bash *(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(params=PAGES, ids=lambda path: path.name)
def page(request) -> str:
    return request.param.read_text(encoding="utf-8")


def sweep(key: str, value: str) -> list[dict]:
    """The overrides that one `-S key=value` stands for: several where it is a range or a list of choices."""
    if bounds := re.fullmatch(r"range\((\d+), *(\d+)\)", value):
        values: list = list(range(*map(int, bounds.groups())))
    elif value.startswith(("{", "[")):
        values = [yaml.safe_load(value)]
    else:
        values = [yaml.safe_load(part) for part in value.split(",")]
    for section in reversed(key.split(".")):
        values = [{section: one} for one in values]
    return values


def test_a_sweep_is_taken_apart():
    assert sweep("split.fold", "range(0,2)") == [{"split": {"fold": 0}}, {"split": {"fold": 1}}]
    assert sweep("model.name", "timm,emas") == [{"model": {"name": "timm"}}, {"model": {"name": "emas"}}]
    assert sweep("train.lr", "0.1") == [{"train": {"lr": 0.1}}]


def test_commands_are_valid_bash(page):
    for kind, body in FENCE.findall(page):
        assert kind in ("", "make", "data", "network", "setup"), kind
        body = re.sub(r"<[^>\n]+>", "placeholder", body)
        done = subprocess.run(["bash", "-n"], input=body, capture_output=True, text=True)
        assert done.returncode == 0, body + done.stderr


def test_commands_of_exp_tools_exist(page):
    known = _parser()[1]
    named = re.findall(r"^ *exp-tools ([a-z]+)", page, re.MULTILINE) + re.findall(r"`exp-tools ([a-z]+)", page)
    assert [name for name in named if name not in known] == []


SETTING = re.compile(r"-S (?:'([^']+)'|([\w.]+=[\w.-]+))")


def choices(text: str) -> list[list[dict]]:
    """The overrides of each `-S` of a text, several for a sweep; a name that the reader gives is left out."""
    found = []
    for quoted, plain in SETTING.findall(text):
        key, _, value = (quoted or plain).partition("=")
        if "my_" not in value and not (value == "null" and text.count(f"-S {key}") > 1):  # null: emptied first
            found.append(sweep(key, value))
    return found


def changed(overrides: Iterable[dict]) -> dict:
    content = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    for one in overrides:
        merge(content, one)
    return content


def test_parameters_exist_and_take_the_values(page):
    for one in itertools.chain(*choices(page)):
        parse_params(changed([one]), str(one))


def test_parameters_of_a_command_go_together(page):
    for _, body in FENCE.findall(page):
        for command in body.replace("\\\n", " ").splitlines():
            for chosen in itertools.product(*choices(command)):
                parse_params(changed(chosen), command)


def test_the_readme_sets_parameters():
    assert len(choices((ROOT / "README.md").read_text(encoding="utf-8"))) >= 5


def test_links_lead_somewhere(page, request):
    path = request.node.callspec.params["page"]
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)#?([^)]*)\)", page):
        file = path.parent / target if target else path
        assert file.exists(), target
        if anchor:
            text = file.read_text(encoding="utf-8")
            titles = [re.sub(r"[^\w -]", "", title).lower() for title in re.findall(r"^#+ (.+)$", text, re.MULTILINE)]
            assert anchor in [title.replace(" ", "-") for title in titles], f"{target}#{anchor}"


def test_the_readme_is_short_and_shows_real_skin_first():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = text.splitlines()
    assert len(lines) <= 160
    assert len(text.split()) <= 1300
    assert any("HAM10000" in line for line in lines[:40])
    assert any(re.match(r"\| .*\d\.\d{3}", line) for line in lines[:40])
