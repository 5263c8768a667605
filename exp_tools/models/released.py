"""The trained model that comes with the project in Git: `--model released`."""

from pathlib import Path

from exp_tools.errors import UserError
from exp_tools.project import RELEASED, SUMS, find_project

NAME = "released"


def model_path(word: str) -> Path:
    """The path of a model that a person names: `released`, or a file."""
    return released_model() if word == NAME else Path(word)


def released_model(root: Path | None = None) -> Path:
    """The released model, whole: of the project in `root` (None: around the working folder), else of this installation.

    Raises UserError where there is none, or its bytes are not those that were released.
    """
    from exp_tools.io import file_sha256  # loads pandas, which no --help needs

    roots = root or find_project(Path.cwd()), Path(__file__).resolve().parents[2]
    sums = next((root / RELEASED / SUMS for root in roots if (root / RELEASED / SUMS).is_file()), None)
    if sums is None:
        raise UserError(f"there is no released model here: {RELEASED} of the project's repository holds it (git pull)")
    digest, _, name = sums.read_text(encoding="utf-8").partition("  ")
    path = sums.with_name(name.strip())
    if not path.is_file() or file_sha256(path) != digest:
        raise UserError(
            f"{path} is not the file that was released (its SHA-256 is not that of {SUMS}): "
            f"git checkout -- {RELEASED.as_posix()}"
        )
    return path
