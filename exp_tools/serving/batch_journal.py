"""The progress of a batch, one line per image, so that it can resume after an interruption."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TextIO

from exp_tools.errors import UserError

Result = list[float] | list[str]
"""The logits of an image, or the kind and text of its fault."""


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

        Raises UserError when the journal is that of another run. A last line that was cut off counts for nothing.
        """
        if not self.path.is_file():
            return {}
        head, *lines = self.path.read_text(encoding="utf-8").split("\n")
        if head and json.loads(head) != self.run:
            raise UserError(
                f"{self.path} is left over from a batch with another model; delete it, or write to another table"
            )
        known = {}
        for line in lines[:-1]:
            name, stamp, result = json.loads(line)
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

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self.path.is_file() or "\n" not in self.path.read_text(encoding="utf-8"):
            self.path.write_text(json.dumps(self.run) + "\n", encoding="utf-8")
        else:
            whole = self.path.read_text(encoding="utf-8").rpartition("\n")[0]
            self.path.write_text(whole + "\n", encoding="utf-8")
        self._file = self.path.open("a", encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        assert self._file is not None
        self._file.close()
