"""What dvc.yaml says a stage depends on covers the code that it imports and the parameters that it reads."""

import ast
import itertools
import re
import typing
from typing import Any

import pytest
import yaml
from helpers.import_graph import Modules
from helpers.project import ROOT
from pydantic import BaseModel

from exp_tools import params
from exp_tools.param_types import EncoderParams

TEMPLATE = re.compile(r"\$\{([\w.]+)\}")
NO_DEPENDENCY = {
    f"exp_tools/{name}.py" for name in ("params", "param_types", "param_errors", "errors", "project", "system")
}
"""params.py only checks values that are all in params.yaml (see below), so its effect goes through the keys; errors.py
says how a stage stops; a path of project.py that changes must change in dvc.yaml too; system.py says how many processes
share the work, which no result depends on. `__init__.py` files are empty, but
for the whole's, which loads nothing that no one asks for."""


def field(key: str) -> Any:
    """The type of a key of params.yaml, written as in `train.lr`."""
    kind: Any = params.Params
    for part in key.split("."):
        kind = kind.model_fields[part].annotation
    return kind


def is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def resolutions(lines: list[str]) -> list[list[str]]:
    """The lines with each `${key}` replaced, once for every combination of the values that the keys can have."""
    keys = sorted({key for line in lines for key in TEMPLATE.findall(line)})
    choices = [typing.get_args(field(key)) for key in keys]
    assert all(choices), f"a key without a list of choices among {keys}"
    resolved = []
    for values in itertools.product(*choices):
        value = dict(zip(keys, values, strict=True))
        resolved.append([TEMPLATE.sub(lambda match, value=value: value[match[1]], line) for line in lines])
    return resolved


def covered(path: str, deps: list[str]) -> bool:
    return any(path == dep or path.startswith(dep.rstrip("/") + "/") for dep in deps)


def uncovered_code(modules: Modules, stage: dict[str, Any]) -> set[str]:
    """Files that the stage's script can import and no dep covers, under any choice of source and architecture."""
    missing = set()
    for deps in resolutions(stage["deps"]):
        code = modules.closure([script(stage)])
        for pattern in [name for name in code if name.endswith(".*")]:
            folder = pattern.removesuffix(".*").replace(".", "/")
            if not covered(folder, deps) and not any(dep.startswith(folder + "/${") for dep in stage["deps"]):
                missing.add(pattern)
            code |= modules.closure(name for name in modules.expand(pattern) if covered(modules.path(name), deps))
        files = {modules.path(name) for name in code if name in modules.files}
        missing |= {file for file in files - NO_DEPENDENCY if not (file.endswith("__init__.py") or covered(file, deps))}
    return missing


def script(stage: dict[str, Any]) -> str:
    return re.match(r"python -m (stages\.\w+)", stage["cmd"])[1]


def keys_read(tree: ast.Module) -> set[str]:
    """Keys of params.yaml that a stage's script reads, as chains on the name `params`; a section if it is passed whole.

    A property of a section (`params.model.architecture`) counts as the section. `params` itself may only be handed to a
    function of the same file: elsewhere nobody could see what is read. In a function whose argument `params` is said to
    be one section, the name is not ours.
    """
    sections = {id(node) for function in ast.walk(tree) if _takes_a_section(function) for node in ast.walk(function)}
    nodes = [node for node in ast.walk(tree) if id(node) not in sections]
    local = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    named = {
        id(node.value) for node in nodes if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "params"
    }
    handed_on_here = set()
    for call in (node for node in nodes if isinstance(node, ast.Call)):
        if ast.unparse(call.func) in local:
            handed_on_here |= {id(argument) for argument in (*call.args, *(keyword.value for keyword in call.keywords))}
        assert "load_params" not in ast.unparse(call.func) or id(call) in named, "write `params = load_params()`"
    inner = {id(node.value) for node in nodes if isinstance(node, ast.Attribute)}
    keys = set()
    for node in nodes:
        if id(node) in inner or not isinstance(node, ast.Attribute | ast.Name) or not isinstance(node.ctx, ast.Load):
            continue
        first, *parts = ast.unparse(node).split(".")
        if first == "params" and parts:
            keys.add(_known_key(parts))
        elif first == "params":
            assert id(node) in handed_on_here, f"line {node.lineno}: params goes elsewhere whole; hand on its sections"
    return keys


def _takes_a_section(node: ast.AST) -> bool:
    return isinstance(node, ast.FunctionDef) and any(
        argument.arg == "params" and argument.annotation is not None and ast.unparse(argument.annotation) != "Params"
        for argument in (*node.args.args, *node.args.kwonlyargs)
    )


def _known_key(parts: list[str]) -> str:
    """As much of a chain of attributes as is a key of params.yaml."""
    section: Any = params.Params
    known = []
    for part in parts:
        if not is_section(section) or part not in section.model_fields:
            break
        known.append(part)
        section = section.model_fields[part].annotation
    assert known, f"params.{'.'.join(parts)} is not a key"
    return ".".join(known)


def leaves(key: str) -> set[str]:
    """The key, or the keys below it, one level of a time, down to single values."""
    kind = field(key)
    if not is_section(kind):
        return {key}
    return {leaf for name in kind.model_fields for leaf in leaves(f"{key}.{name}")}


def unlisted_params(tree: ast.Module, listed: list[str]) -> set[str]:
    """Keys that are read and not listed, under any choice of architecture.

    Where `model.${model.name}` is listed, the knobs of the architectures that are not chosen count as not read.
    """
    missing = set()
    for keys in resolutions(listed):
        read = {leaf for key in keys_read(tree) if not key.startswith("machine") for leaf in leaves(key)}
        templates = [line for line in listed if TEMPLATE.search(line)]
        others = {key for line in templates for combination in resolutions([line]) for key in combination} - set(keys)
        read -= {leaf for leaf in read if any(_within(leaf, other) for other in others)}
        missing |= {leaf for leaf in read if not any(_within(leaf, key) for key in keys)}
    return missing


def unread_params(tree: ast.Module, listed: list[str]) -> set[str]:
    """Keys that are listed and not read: a change of one would re-run the stage for nothing."""
    read = keys_read(tree)
    return {
        line
        for line in listed
        if not any(_within(key, one) or _within(one, key) for key in resolutions([line])[0] for one in read)
    }


def _within(key: str, section: str) -> bool:
    return key == section or key.startswith(section + ".")


PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
STAGES = PIPELINE["stages"]
MODULES = Modules(ROOT)


@pytest.mark.parametrize("name", STAGES)
def test_the_deps_of_a_stage_cover_the_code_it_imports(name):
    assert sorted(uncovered_code(MODULES, STAGES[name])) == []


@pytest.mark.parametrize("name", STAGES)
def test_the_params_of_a_stage_are_those_it_reads(name):
    tree = MODULES.tree(script(STAGES[name]))
    assert sorted(unlisted_params(tree, STAGES[name].get("params", []))) == []
    assert sorted(unread_params(tree, STAGES[name].get("params", []))) == []


@pytest.mark.parametrize("name", STAGES)
def test_what_runs_where_is_no_parameter_of_a_result(name):
    assert [key for key in STAGES[name].get("params", []) if key.startswith("machine")] == []


def test_every_script_is_a_stage_of_its_own_name_run_as_a_module():
    """`python stages/x.py` would import the workspace's code, not that of the moment a run was queued."""
    scripts = {
        name for name in MODULES.files if name.startswith("stages.") and "__main__" in ast.unparse(MODULES.tree(name))
    }
    assert {f"stages.{name}" for name in STAGES} == scripts
    assert {name: script(stage) for name, stage in STAGES.items()} == {name: f"stages.{name}" for name in STAGES}


def test_every_parameter_comes_from_the_file():
    """params.py may be no dependency of a stage only as long as it makes up no value."""
    sections = [kind for kind in vars(params).values() if is_section(kind) and kind not in (BaseModel, params.Section)]
    assert len(sections) > 8
    optional = [
        f"{kind.__name__}.{name}" for kind in sections for name, f in kind.model_fields.items() if not f.is_required()
    ]
    # An external set may leave these out, and an encoder its options: they are null then.
    left_out = ("dir", "table", "columns", "classes", "filter", "licences")
    assert optional == [f"ExternalParams.{name}" for name in left_out]
    assert EncoderParams(backbone="resnet18", weights="none").options is None
    assert params.ExternalParams(source="ph2").model_dump(exclude={"source"}) == dict.fromkeys(left_out)


TREE = {
    "stages/train.py": "import exp_tools.params\ndef main():\n    from exp_tools.training import trainer\n",
    "exp_tools/params.py": "",
    "exp_tools/training/__init__.py": "",
    "exp_tools/training/trainer.py": "from exp_tools.models.registry import build_model",
    "exp_tools/models/registry.py": "import_module(f'exp_tools.models.architectures.{name}')",
    "exp_tools/models/architectures/timm.py": "",
    "exp_tools/models/architectures/soft_attention.py": "from exp_tools.models import attention",
    "exp_tools/models/attention.py": "",
}
DEPS = [
    "stages/train.py",
    "exp_tools/training",
    "exp_tools/models/registry.py",
    "exp_tools/models/attention.py",
    "exp_tools/models/architectures/${model.name}.py",
]


@pytest.mark.parametrize(
    ("forgotten", "missing"),
    [
        (None, set()),
        ("stages/train.py", {"stages/train.py"}),
        ("exp_tools/training", {"exp_tools/training/trainer.py"}),
        ("exp_tools/models/attention.py", {"exp_tools/models/attention.py"}),
        ("exp_tools/models/architectures/${model.name}.py", {"exp_tools.models.architectures.*"}),
    ],
)
def test_a_forgotten_dep_is_found(tmp_path, forgotten, missing):
    for name, source in TREE.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(source)
    stage = {"cmd": "python -m stages.train", "deps": [dep for dep in DEPS if dep != forgotten]}
    assert uncovered_code(Modules(tmp_path), stage) == missing


SCRIPT = """
def main():
    params = load_params()
    fit(params.task, params.train.lr, params.split)
    build(params.model.architecture, workers=params.machine.workers)
"""
LISTED = ["task", "train.lr", "split", "model.name", "model.weights", "model.${model.name}"]


def test_parameters_that_are_read_and_not_listed_are_found():
    tree = ast.parse(SCRIPT)
    assert keys_read(tree) == {"task", "train.lr", "split", "model", "machine.workers"}
    assert unlisted_params(tree, LISTED) == set()
    assert unlisted_params(tree, ["task", "train", "split", "model"]) == set()
    assert unlisted_params(tree, [key for key in LISTED if key not in {"task", "train.lr"}]) == {"task", "train.lr"}
    assert "split.fold" in unlisted_params(tree, [key for key in LISTED if key != "split"])
    assert "model.timm.dropout" in unlisted_params(tree, LISTED[:-1])


def test_parameters_that_are_listed_and_not_read_are_found():
    assert unread_params(ast.parse(SCRIPT), LISTED) == set()
    assert unread_params(ast.parse(SCRIPT), [*LISTED, "prepare.image_size", "train.seed"]) == {
        "prepare.image_size",
        "train.seed",
    }


def test_parameters_handed_on_whole_to_another_module_are_refused():
    with pytest.raises(AssertionError, match="line 2"):
        keys_read(ast.parse("params = load_params()\ntrain(params)"))
    assert keys_read(ast.parse("def run(params):\n    use(params.train)\nrun(params)")) == {"train"}
    assert keys_read(ast.parse("def score(params: EvaluateParams):\n    use(params.bins)\nscore(params.evaluate)")) == {
        "evaluate"
    }
