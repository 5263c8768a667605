"""Evaluations that visitors start: one at a time, each in a process and a folder of its own, gone with the server."""

import atexit
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import Any, get_args

import pandas as pd

from exp_tools.app.parts import data_roots, evaluation_job
from exp_tools.app.parts.evaluation_job import EXTERNAL, TEST, Request
from exp_tools.app.parts.settings import Settings
from exp_tools.data.labels.table import SET
from exp_tools.errors import UserError
from exp_tools.params import DataParams
from exp_tools.project import EXTERNAL_LABELS, EXTERNAL_RAW, LABELS, RAW, SPLITS

KEPT = 10
"""Finished evaluations that are kept; older ones go."""
KINDS = [
    name for name in get_args(DataParams.model_fields["source"].annotation) if name not in ("synthetic", "combined")
]
"""Kinds of data set that a folder can be."""


@dataclass
class Evaluation:
    """An evaluation that was asked for, its folder and its process."""

    request: Request
    folder: Path
    process: subprocess.Popen

    @property
    def title(self) -> str:
        return f"{self.request.label} on {self.request.chosen}"

    @property
    def status(self) -> dict[str, Any]:
        """`state` (running, done, failed), `step` in words, `share` of it that is done, 0 to 1."""
        ended = self.process.poll() is not None
        try:
            status = json.loads((self.folder / "status.json").read_text(encoding="utf-8"))
        except OSError:  # it has not begun
            status = {"state": "running", "step": "starting", "share": 0}
        if ended and status["state"] == "running":
            return {"state": "failed", "step": "it was stopped", "share": 0}
        return status

    def stop(self) -> None:
        """End the process."""
        self.process.terminate()

    def read(self, name: str) -> Any:
        """A JSON file of the results."""
        return json.loads((self.folder / "results" / name).read_text(encoding="utf-8"))

    def file(self, name: str) -> bytes:
        """A file of the results."""
        return (self.folder / "results" / name).read_bytes()

    def archive(self) -> bytes:
        """All results as one ZIP."""
        results, buffer = self.folder / "results", BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
            for path in sorted(path for path in results.rglob("*") if path.is_file()):
                file.write(path, path.relative_to(results))
        return buffer.getvalue()


class Evaluations:
    """The evaluations of a server, the newest last; shared by all visitors."""

    def __init__(self) -> None:
        self.all: list[Evaluation] = []
        self._starting = Lock()  # two visitors may ask at once
        atexit.register(self.end)

    @property
    def running(self) -> Evaluation | None:
        return next((one for one in self.all if one.status["state"] == "running"), None)

    def start(self, request: Request) -> Evaluation:
        """Start one. Raises UserError while another one runs."""
        with self._starting:
            if self.running:
                raise UserError("another evaluation is running on this server; wait for it or stop it")
            folder = Path(tempfile.mkdtemp(prefix="exp-tools-evaluation-"))
            evaluation_job.save(request, folder)
            command = [sys.executable, "-m", evaluation_job.__name__, str(folder)]
            process = subprocess.Popen(command, cwd=request.root, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
            self.all.append(Evaluation(request, folder, process))
            for old in self.all[:-KEPT]:
                shutil.rmtree(old.folder, ignore_errors=True)
            del self.all[:-KEPT]
            return self.all[-1]

    def end(self) -> None:
        """Stop what runs and remove all results: at the server's end."""
        for one in self.all:
            if one.process.poll() is None:
                one.process.kill()
                one.process.wait()
            shutil.rmtree(one.folder, ignore_errors=True)


def sets(settings: Settings) -> list[str]:
    """What a model can be evaluated on here: the test split, external sets, and the data folders."""
    root, found = settings.folder, []
    if all((root / path).exists() for path in (RAW, LABELS, SPLITS)):
        found.append(TEST)
    if (root / EXTERNAL_LABELS).is_file():
        names = pd.read_csv(root / EXTERNAL_LABELS, usecols=[SET], dtype=str, keep_default_na=False)[SET].unique()
        found += [f"{EXTERNAL}{name}" for name in names if (root / EXTERNAL_RAW / name).is_dir()]
    return found + data_roots.folders(settings.data_roots)


def require_table(folder: str, table: str | None) -> None:
    """Raise UserError unless the table is a file in the folder: error messages quote what is read as a table."""
    path = Path(folder, table or "").resolve()
    if not table or not path.is_relative_to(Path(folder).resolve()) or not path.is_file():
        raise UserError(f"the table {table!r} is no file in {folder}; write its name, such as labels.csv")
