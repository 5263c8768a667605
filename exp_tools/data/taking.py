"""What the sources have in common when they read a folder: which file an image is in, which table is meant."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from exp_tools.data.images import EXTENSIONS, index_images
from exp_tools.errors import UserError


def with_files(table: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """Add `file`, the image of each row, and `copies`, other files of that name: found by name, never made from it.

    Spaces around an id and the ending of an image file are no hindrance.
    """
    found = index_images(folder)
    files, copies = [], []
    for image_id in table["image_id"]:
        name = image_id.strip()
        stem = name[: -len(Path(name).suffix)] if Path(name).suffix.lower() in EXTENSIONS else name
        paths = found.get(name) or found.get(stem) or []
        files.append(str(paths[0]) if paths else "")
        copies.append(", ".join(path.relative_to(folder).as_posix() for path in paths) if len(paths) > 1 else "")
    text = {"file": files, "copies": copies}
    return table.assign(**{name: pd.Series(cells, index=table.index, dtype=str) for name, cells in text.items()})


def joined(*parts: pd.DataFrame) -> pd.DataFrame:
    """Tables under each other, with `row` keeping the line in each one's file; what a part lacks is ""."""
    numbered = [part if "row" in part else part.assign(row=part.index) for part in parts]
    return pd.concat(numbered, ignore_index=True).fillna("")


def only_one(paths: Sequence[Path], folder: Path, what: str, remedy: str = "; take the others away") -> Path:
    """The only path there is (or one of several that have the same content); else UserError that names them."""
    if len({path.read_bytes() for path in paths}) > 1:
        names = ", ".join(path.relative_to(folder).as_posix() for path in paths)
        raise UserError(f"below {folder} is more than one {what}: {names}{remedy}")
    return paths[0]
