"""How long things take that do nothing: an import, the start of a stage, `dvc repro` when all is up to date."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import yaml

from benchmarks.case import Case, of_times, seconds

ROOT = Path(__file__).resolve().parents[1]
RAW_FILES = 1400
LIGHT_STAGES = ("download", "split")


def import_case(repeats: int) -> Case:
    """`import exp_tools` in a new process, less the start of Python."""
    bare = min(seconds(lambda: start("")) for _ in range(repeats))
    times = [max(seconds(lambda: start("import exp_tools")) - bare, 1e-4) for _ in range(repeats)]
    return of_times("import", times, 0.1, "import exp_tools in 0.1 s")


def stage_start_case(repeats: int) -> Case:
    """The start of Python and all imports of the stages that people wait for; the slowest of them counts."""
    times = [
        max(seconds(lambda stage=stage: start(f"import stages.{stage}")) for stage in LIGHT_STAGES)
        for _ in range(repeats)
    ]
    return of_times("stage_start", times, 1.0, f"the slowest of {', '.join(LIGHT_STAGES)} in 1 s")


def help_case(repeats: int) -> Case:
    """`exp-tools --help`, the start of Python included."""
    command = [sys.executable, "-m", "exp_tools.cli", "--help"]
    times = [
        seconds(lambda: subprocess.run(command, check=True, cwd=ROOT, capture_output=True)) for _ in range(repeats)
    ]
    return of_times("help", times, 0.5, "exp-tools --help in 0.5 s")


def start(code: str) -> None:
    """Run a line of Python in a new process, in the project's folder."""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def repro_noop_case(scratch: Path, repeats: int) -> Case:
    """`dvc repro` of the whole pipeline with nothing to do, the start of DVC included."""
    copy_project(scratch / "noop")
    commit_dummies(scratch / "noop")
    said = dvc(scratch / "noop", "repro")  # this first run reads what the next one remembers
    if "up to date" not in said or "Running stage" in said:
        raise RuntimeError(f"dvc repro had something to do:\n{said}")
    times = [seconds(lambda: dvc(scratch / "noop", "repro")) for _ in range(repeats)]
    return of_times("repro_noop", times, 2.0, "dvc repro with nothing to do in 2 s")


def copy_project(folder: Path) -> None:
    """The files of the project that Git knows or would, as they are now, with DVC but without Git."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file() and not name.startswith((".dvc/", "tests/", "docs/")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    (folder / "dvc.lock").unlink(missing_ok=True)
    dvc(folder, "init", "--no-scm", "-q")


def commit_dummies(folder: Path) -> None:
    """Give every stage outputs that nothing computed and let DVC believe in them: a no-op reads no content."""
    stages = yaml.safe_load((folder / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    generator = np.random.default_rng(0)
    for stage in stages.values():
        for kind in ("outs", "metrics", "plots"):
            for entry in stage.get(kind, []):
                path = folder / (next(iter(entry)) if isinstance(entry, dict) else entry)
                inside = RAW_FILES if path.name == "raw" else 10
                files = [path] if path.suffix else [path / f"{place}.dat" for place in range(inside)]
                for file in files:
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_bytes(generator.bytes(1000))
    dvc(folder, "commit", "--force", "-q")


def dvc(folder: Path, *words: str) -> str:
    """Run DVC quietly in a folder and return what it said."""
    variables = {key: value for key, value in os.environ.items() if not key.startswith(("GIT_", "DVC_"))}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *words],
        cwd=folder,
        env=variables | {"PATH": path, "DVC_NO_ANALYTICS": "1"},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode:
        raise RuntimeError(f"dvc {' '.join(words)} failed in {folder}:\n{done.stdout}{done.stderr}")
    return done.stdout
