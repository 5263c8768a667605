"""Training state on disk, outside DVC's outs: one folder per run, named by a fingerprint of all its inputs.

A run with the same fingerprint resumes from there; any other never looks at it. Two kinds of file: `best-<epoch>.pt`,
the weights that are best so far, and `state.pt`, everything needed to resume, which names the best file that belongs to
it. Both are written to temporary files and renamed, the best one first: whenever a process is killed, `state.pt` is
whole and belongs to files that are.
"""

import contextlib
import hashlib
import json
import os
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from exp_tools.errors import UserError
from exp_tools.io import atomic_write, write_json

FORMAT = 1
_NAME = re.compile("[0-9a-f]{16}")
"""Of a run's folder: its fingerprint. `runs/` has other folders too."""
OWN_FILES = ("state.pt", "best-*.pt", "run.json", ".*.tmp")


def fingerprint(facts: dict[str, Any]) -> str:
    """Sixteen hexadecimal digits: a hash of the facts and of the loaded code."""
    content = json.dumps({"facts": facts, "code": code_digest(), "format": FORMAT}, sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def code_digest() -> str:
    """Digest of the source of every module of this project that is loaded now."""
    root = Path(__file__).resolve().parents[2]
    files = {
        Path(module.__file__).resolve() for module in list(sys.modules.values()) if getattr(module, "__file__", None)
    }
    digest = hashlib.sha256()
    for file in sorted(file for file in files if file.suffix == ".py" and _is_ours(file, root)):
        digest.update(str(file.relative_to(root)).encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


def _is_ours(file: Path, root: Path) -> bool:
    return file.is_relative_to(root / "exp_tools") or file.is_relative_to(root / "stages")


class RunStore:
    """The folder of one run. Enter it to hold it: a second process with the same fingerprint is refused."""

    def __init__(self, runs: Path, name: str, summary: dict[str, Any]):
        self.folder, self.summary = runs / name, summary
        self._lock = FileLock(runs / f"{name}.lock")
        self._warned = False

    def __enter__(self) -> "RunStore":
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise UserError(
                f"another process is training this very run ({self.folder}): wait for it, or end it. After a killed "
                "`dvc` the stage lives on by itself; `ps aux | grep stages.train` shows it"
            ) from None
        for half_written in self.folder.glob(".*.tmp"):  # by a process that was killed
            half_written.unlink()
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(OSError):  # before the release, so that no process takes a lock that is to vanish
            Path(self._lock.lock_file).unlink(missing_ok=True)
        self._lock.release()

    def load(self) -> dict[str, Any] | None:
        """The saved state with its best weights under "best", or None where there is none that can be read."""
        path = self.folder / "state.pt"
        if not path.is_file():
            return None
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            state["best"] = (
                torch.load(self.folder / state["best_file"], weights_only=True) if state["best_file"] else None
            )
        except Exception as error:  # a damaged file makes the reader raise almost anything
            print(f"warning: {path} cannot be read ({error}); training starts again", file=sys.stderr)
            return None
        return state

    def save_best(self, epoch: int, best: dict[str, Any]) -> None:
        """Write the best weights so far; they count once `save` has named them."""
        self._write(f"best-{epoch}.pt", best)

    def save(self, state: dict[str, Any], best_epoch: int, best: dict[str, Any], progress: dict[str, Any]) -> bool:
        """Write the state, then forget best weights that it does not name; tell whether it is written.

        `best` is written again where the disk was full at first; `progress` is what `exp-tools runs` shows. A disk that
        is full is said, and training goes on with the state before it kept.
        """
        name = f"best-{best_epoch}.pt" if best_epoch else ""
        if name and not (self.folder / name).is_file() and not self._write(name, best):
            return False
        if not self._write("state.pt", state | {"best_file": name}):
            return False
        for old in self.folder.glob("best-*.pt"):
            if old.name != name:
                old.unlink()
        with contextlib.suppress(OSError, UserError):  # a table's row, nothing that is needed to resume
            write_json(self.folder / "run.json", self.summary | progress)
        return True

    def finish(self) -> None:
        """Remove the run's files: its result is safe elsewhere."""
        _remove(self.folder)

    def _write(self, name: str, content: dict[str, Any]) -> bool:
        try:
            with atomic_write(self.folder / name) as temporary:
                torch.save(content, temporary)
                _to_disk(temporary)  # or a power cut after the renaming could leave a file of zeros
            _to_disk(self.folder)
        except (UserError, OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
            if not self._warned:
                print(
                    f"warning: {self.folder / name} could not be written ({_first_line(error)}); training goes on, and "
                    "would resume from the state before. Make room on the disk",
                    file=sys.stderr,
                )
            self._warned = True
            return False
        self._warned = False
        return True


def _remove(folder: Path) -> None:
    """Remove what a run writes, and the folder unless something else is in it."""
    for path in [path for pattern in OWN_FILES for path in folder.glob(pattern)]:
        with contextlib.suppress(OSError):
            path.unlink()
    with contextlib.suppress(OSError):
        folder.rmdir()


def _to_disk(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk and not only in memory."""
    if path.is_dir() and os.name == "nt":  # where a folder cannot be opened
        return
    place = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(place)
    finally:
        os.close(place)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


@dataclass(frozen=True)
class LeftOver:
    """A run that did not finish: its folder, size in bytes, seconds since it was saved, whether it is running now."""

    folder: Path
    size: int
    age: float
    running: bool
    summary: dict[str, Any]


def list_runs(runs: Path) -> list[LeftOver]:
    """The unfinished runs in a folder, the latest first."""
    found = []
    for folder in sorted(path for path in runs.glob("*") if _NAME.fullmatch(path.name)):
        if folder.is_symlink() or not folder.is_dir():
            continue
        files = [path for path in folder.iterdir() if path.is_file()]
        about = folder / "run.json"
        summary = json.loads(about.read_text(encoding="utf-8")) if about.is_file() else {}
        saved = max((path.stat().st_mtime for path in files), default=folder.stat().st_mtime)
        lock = folder.with_name(f"{folder.name}.lock")
        size = sum(path.stat().st_size for path in files)
        found.append(LeftOver(folder, size, time.time() - saved, _is_held(lock), summary))
    return sorted(found, key=lambda run: run.age)


def _is_held(lock: Path) -> bool:
    if not lock.is_file():
        return False
    try:
        with FileLock(lock).acquire(timeout=0):
            return False
    except Timeout:
        return True


def shown_runs(found: list[LeftOver]) -> list[dict[str, Any]]:
    """Left-over runs as plain rows: name, summary, megabytes, state."""
    rows = []
    for run in found:
        about = run.summary
        summary = "no state saved yet"
        if about:
            best = about["best_score"]
            summary = f"{about['model']} on {about['source']}, epoch {about['epoch']} of {about['epochs']}"
            summary += f", step {about['step']}" if about["step"] else ""
            summary += "" if best is None else f", best {about['select_on']} {best:.3f}"
        hours, minutes = divmod(int(run.age // 60), 60)
        state = "running now" if run.running else f"saved {hours} h {minutes:02} min ago"
        rows.append({"name": run.folder.name, "summary": summary, "megabytes": run.size / 1e6, "state": state})
    return rows


def delete_run(runs: Path, name: str) -> LeftOver:
    """Delete the state of one run. Raises UserError for an unknown name, and for a run that is under way."""
    for run in list_runs(runs):
        if run.folder.name == name:
            if run.running:
                raise UserError(f"run {name} is under way: end it first")
            _remove(run.folder)
            run.folder.with_name(f"{name}.lock").unlink(missing_ok=True)
            return run
    raise UserError(f"there is no left-over run {name!r}; `exp-tools runs` lists them")
