"""The progress of a batch, one line per image, so that it can resume after an interruption."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TextIO

from exp_tools.errors import UserError
from exp_tools.io import atomic_write

Result = list[float | bool | str] | list[str]
"""The logits of an image, then what `Judgement.rows` says of it; or the kind and text of its fault."""


class BatchJournal:
    """The file `.<table>.journal` next to a table that is being made. Enter it to write.

    Parameters
    ----------
    table : the table
    run : what must be the same for results to be taken over; plain JSON
    """

    def __init__(self, table: Path, run: Mapping[str, Any]) -> None:
        self.path, self.run = table.with_name(f".{table.name}.journal"), dict(run)
        self._file: TextIO | None = None

    def read(self, names: Sequence[str], stamps: Sequence[list]) -> dict[int, Result]:
        """Results by place, for the images whose name and stamp are those of the journal.

        Raises UserError when the journal is that of another run. Lines that are not whole, as a kill or a power cut
        leaves them, count for nothing.
        """
        head, *lines = self._entries() or [None]
        if head not in (None, self.run):
            raise UserError(
                f"{self.path} is left over from a batch with another model; delete it, or write to another table"
            )
        known = {}
        for name, stamp, result in lines:
            known[name] = stamp, result
        return {
            place: known[name][1]
            for place, (name, stamp) in enumerate(zip(names, stamps, strict=True))
            if name in known and known[name][0] == stamp
        }

    def add(self, entries: Sequence[tuple[str, list, Result]]) -> None:
        """Append name, stamp and result of images; they are on their way to the disk when this returns."""
        assert self._file is not None
        self._file.writelines(json.dumps(entry) + "\n" for entry in entries)
        self._file.flush()

    def _entries(self) -> list[Any]:
        """The first line and the results, without what is not whole; [] where there is no first line."""
        text = self.path.read_text(encoding="utf-8", errors="replace") if self.path.is_file() else ""
        found = []
        for line in text.split("\n")[:-1]:
            try:
                found.append(json.loads(line))
            except ValueError:
                if not found:
                    return []
        return found

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        entries = self._entries() or [self.run]
        with atomic_write(self.path) as temporary:
            temporary.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
        self._file = self.path.open("a", encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        assert self._file is not None
        self._file.close()
