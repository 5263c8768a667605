"""Settings of the web app: where the project is, and what a page may do."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

MAX_UPLOAD_MB = 20
CACHE = Path(".dvc/tmp/exp-tools-app")
"""Models of experiments, by their hash. In `.dvc/tmp`, which DVC keeps out of Git and which may be deleted any time."""


@dataclass(frozen=True)
class Settings:
    """Paths and permissions.

    root : the project's folder
    model : a model file to use in place of the project's own; None: the project's
    allow_training : whether the page may queue and run experiments
    data_roots : folders whose data visitors may evaluate on and, where training is allowed, train on
    cases : whether the app may show the data set's own pictures
    """

    root: str
    model: str | None = None
    allow_training: bool = False
    data_roots: tuple[str, ...] = ()
    cases: bool = False

    def to_text(self) -> str:
        """As one argument of a command; `from_text` takes it back."""
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: str) -> "Settings":
        content = json.loads(text)
        return cls(**content | {"data_roots": tuple(content["data_roots"])})

    @property
    def folder(self) -> Path:
        """The project's folder."""
        return Path(self.root)
