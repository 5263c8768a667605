"""An import never goes up the layers, a subject is handled in one place, and what needs no model never loads torch."""

import ast
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from helpers.import_graph import Modules
from helpers.project import ROOT

LAYERS = (
    {
        f"exp_tools.{name}"
        for name in (
            "errors",
            "io",
            "param_errors",
            "param_models",
            "param_types",
            "params",
            "project",
            "system",
            "taxonomy",
        )
    },
    {"exp_tools.data", "exp_tools.devices", "exp_tools.revisions"},
    {"exp_tools.models"},
    {"exp_tools.ood"},
    {"exp_tools.evaluation"},
    {"exp_tools.explain", "exp_tools.probing", "exp_tools.training"},
    {"exp_tools.data_check"},
    {"exp_tools.doctor", "exp_tools.recipes", "exp_tools.serving"},
    {"exp_tools.studies"},
    {"exp_tools.app"},
    {"exp_tools.cli", "stages"},
    {"benchmarks"},
)


def layer(module: str) -> int | None:
    """Height of a module's room; None for one that belongs to no room (or is not ours)."""
    for height, rooms in enumerate(LAYERS):
        if any(module == room or module.startswith(room + ".") for room in rooms):
            return height
    return None


def violations(root: Path) -> list[str]:
    modules = Modules(root)
    found = []
    for module in modules.files:
        if module == "exp_tools":
            continue
        if layer(module) is None:
            found.append(f"{module} is in no layer: give it a place in LAYERS and in the architecture")
            continue
        imported = modules.imports(module)
        found += [
            f"{module} imports {name}, a layer above it" for name in imported if (layer(name) or 0) > layer(module)
        ]
        if module != "exp_tools.training.tracking" and any(name.split(".")[0] == "dvclive" for name in imported):
            found.append(f"{module} imports dvclive; only exp_tools.training.tracking may")
        if module != "exp_tools.params" and names_params_file(modules.tree(module)):
            found.append(f"{module} names the file params.yaml; only exp_tools.params may open it")
    return sorted(found)


def room(modules: Modules, module: str) -> str:
    """The package that a module is in; a module that lies directly in `exp_tools` stands for itself."""
    package = modules.package(module)
    return module if package == "exp_tools" else package


def package_cycles(root: Path) -> list[str]:
    """Pairs of packages that import each other, directly or through others; a package and one inside it are two.

    A file that is imported by a name from outside (an architecture, a source) makes no pair: it registers itself.
    """
    modules = Modules(root)
    imports: dict[str, set[str]] = {}
    for module in modules.files:
        package = room(modules, module)
        for name in modules.imports(module):
            for target in {name} & modules.files.keys():
                if room(modules, target) != package:
                    imports.setdefault(package, set()).add(room(modules, target))
    reached = {package: _reachable(package, imports) for package in imports}
    return sorted(f"{one} <-> {other}" for one in imports for other in imports[one] if one in reached.get(other, ()))


def _reachable(start: str, imports: dict[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        new = imports.get(waiting.pop(), set()) - seen
        seen |= new
        waiting += new
    return seen


def names_params_file(tree: ast.Module) -> bool:
    """Whether a string is the file's name or a path to it; a sentence that mentions it is not."""
    return any(
        isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.split("/")[-1] == "params.yaml"
        for node in ast.walk(tree)
    )


def test_no_import_goes_up_and_each_subject_has_one_place():
    assert violations(ROOT) == []


def test_packages_do_not_import_each_other():
    assert package_cycles(ROOT) == []


def test_a_cycle_of_packages_is_found(tmp_path):
    write(tmp_path, {"exp_tools/data/a.py": "from exp_tools.data.images import b", "exp_tools/data/images/b.py": ""})
    assert package_cycles(tmp_path) == []
    write(tmp_path, {"exp_tools/data/images/b.py": "def f():\n    from exp_tools.data.labels.c import g"})
    write(tmp_path, {"exp_tools/data/labels/c.py": "from exp_tools.data.a import h"})
    assert package_cycles(tmp_path) == [
        "exp_tools.data <-> exp_tools.data.images",
        "exp_tools.data.images <-> exp_tools.data.labels",
        "exp_tools.data.labels <-> exp_tools.data",
    ]


def test_no_package_has_more_than_14_modules_and_no_file_more_than_330_lines():
    modules = Modules(ROOT)
    inside = Counter(modules.package(name) for name in modules.files if name.startswith("exp_tools"))
    assert [name for name, count in inside.items() if count > 14] == []
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in ROOT.glob("exp_tools/**/*.py")}
    assert [str(path) for path, count in lines.items() if count > 330] == []


@pytest.mark.parametrize(
    ("file", "source", "complaint"),
    [
        ("exp_tools/data/labels/table.py", "from exp_tools.models import registry", "imports exp_tools.models"),
        (
            "exp_tools/data/labels/table.py",
            "def read():\n    import exp_tools.training.trainer",
            "imports exp_tools.training.trainer",
        ),
        (
            "exp_tools/data/labels/table.py",
            "from ...evaluation.metrics.classification import f1",
            "imports exp_tools.evaluation.metrics",
        ),
        ("exp_tools/data/labels/table.py", "from exp_tools.cli import main", "imports exp_tools.cli.main"),
        ("exp_tools/models/registry.py", "import_module(f'exp_tools.training.{name}')", "imports exp_tools.training.*"),
        ("exp_tools/evaluation/metrics/classification.py", "import stages.train", "imports stages.train"),
        ("exp_tools/training/trainer.py", "from dvclive import Live", "imports dvclive"),
        ("stages/train.py", "import yaml\nyaml.safe_load(open('params.yaml'))", "names the file params.yaml"),
        ("exp_tools/utils.py", "", "is in no layer"),
    ],
)
def test_a_planted_violation_is_found(tmp_path, file, source, complaint):
    tree = {
        "exp_tools/params.py": "PARAMS_FILE = 'params.yaml'",
        "exp_tools/cli/main.py": "from exp_tools.models import registry",
        "exp_tools/data/labels/table.py": "from exp_tools.params import load_params",
        "exp_tools/models/registry.py": "import torch\nimport_module(f'exp_tools.models.{name}')",
        "exp_tools/training/trainer.py": "from .tracking import track\nfrom exp_tools.evaluation import metrics",
        "exp_tools/training/tracking.py": "from dvclive import Live",
        "exp_tools/evaluation/metrics/classification.py": "'''Never opens params.yaml.'''",
        "stages/train.py": "from exp_tools.training import trainer",
    }
    write(tmp_path, tree)
    assert violations(tmp_path) == []
    write(tmp_path, {file: source})
    found = violations(tmp_path)
    assert len(found) == 1
    assert complaint in found[0]


def write(root: Path, tree: dict[str, str]) -> None:
    for name, source in tree.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(source)


def test_packages_have_empty_init_files_but_for_the_lazy_names_of_the_whole():
    full = [str(file.relative_to(ROOT)) for file in ROOT.glob("exp_tools/**/__init__.py") if file.read_text().strip()]
    assert full == ["exp_tools/__init__.py"]


def test_the_names_of_the_whole_are_there_and_load_torch_only_when_used():
    script = """
import sys, exp_tools
assert sorted(exp_tools.__all__) == ["Patient", "Predictor"]
assert not hasattr(exp_tools, "Predicter")
assert not {"torch", "numpy", "pandas"} & set(sys.modules)
from exp_tools import Patient, Predictor
from exp_tools.serving import predictor
assert Predictor is predictor.Predictor and Patient is predictor.Patient
assert "torch" in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


TORCH_FREE = ("exp_tools.data", "exp_tools.cli", "exp_tools.doctor", "exp_tools.params", "exp_tools.taxonomy")
TORCH_FREE_STAGES = ("stages.download", "stages.features", "stages.prepare", "stages.split")


def test_what_needs_no_model_never_loads_torch():
    names = [name for name in Modules(ROOT).files if name.startswith(TORCH_FREE) or name in TORCH_FREE_STAGES]
    assert {*TORCH_FREE, *TORCH_FREE_STAGES} <= set(names)
    script = """
import importlib, json, sys
guilty = []
for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
    if "torch" in sys.modules:
        guilty.append(name)
        break
print(json.dumps(guilty))
"""
    done = subprocess.run([sys.executable, "-c", script, json.dumps(names)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []
