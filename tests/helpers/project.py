"""A throw-away clone of this project as it stands in the working tree, with a tiny configuration."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
TINY = {
    "data": {"sample_images": 60},
    "prepare": {"image_size": 32},
    "model": {"soft_attention": {"backbone": "test_resnet"}, "timm": {"backbone": "test_resnet"}},
    "train": {"epochs": 2, "batch_size": 16, "precision": "bf16"},
    "evaluate": {"resamples": 100},
    "explain": {"images": 4},
    "machine": {"threads": 1},
}


class Project:
    """Runs commands in a folder as a user with an activated environment would."""

    def __init__(self, folder: Path):
        self.folder = folder

    def run(self, *command: str, check: bool = True, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a command; `check` fails the test with the whole output when it does not succeed."""
        names = ("GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL")
        env = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("GIT_", "DVC_"))},
            **dict.fromkeys(names, "test@example.org"),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "DVC_NO_ANALYTICS": "1",
            **variables,
        }
        env.pop("PYTHONPATH", None)
        done = subprocess.run(
            command, cwd=self.folder, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        if check and done.returncode:
            raise AssertionError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
        return done

    def copy(self, folder: Path) -> "Project":
        """The same project with its whole state, DVC cache included, somewhere else."""
        shutil.copytree(self.folder, folder, symlinks=True)
        return Project(folder)

    def bytes_of(self, *patterns: str) -> dict[str, bytes]:
        """Content of every file that fits a pattern, by its path."""
        files = sorted(path for pattern in patterns for path in self.folder.glob(pattern) if path.is_file())
        assert files, patterns
        return {str(path.relative_to(self.folder)): path.read_bytes() for path in files}


def clone(folder: Path, overrides: dict | None = None) -> Project:
    """Copy what Git would commit of the working tree, shrink its parameters, commit it in a repository of its own."""
    folder.mkdir(parents=True)
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
            (folder / name).chmod((ROOT / name).stat().st_mode)
    (folder / "dvc.lock").unlink(missing_ok=True)
    project = Project(folder)
    if overrides is not None:
        content = yaml.safe_load((folder / "params.yaml").read_text(encoding="utf-8"))
        merge(content, overrides)
        (folder / "params.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    project.run("git", "init", "-q", "-b", "main")
    project.run("git", "add", "-A")
    project.run("git", "commit", "-qm", "start")
    return project


def merge(content: dict, overrides: dict) -> None:
    """Change `content` in place by the nested `overrides`."""
    for key, value in overrides.items():
        if isinstance(value, dict) and isinstance(content.get(key), dict):
            merge(content[key], value)
        else:
            content[key] = value
