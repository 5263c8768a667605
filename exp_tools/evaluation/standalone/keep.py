"""Keep a prediction table in Git: `exp-tools score --keep`."""

import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pandas as pd
import yaml

from exp_tools.errors import UserError
from exp_tools.evaluation.made_with import KEPT, parameters_of
from exp_tools.evaluation.predictions import ID_COLUMNS, calibration_of, read_predictions
from exp_tools.io import atomic_write, guard_cells


def kept_files(out: Path) -> tuple[Path, Path]:
    """The table and its parameters. Raises UserError for a name that does not end in KEPT."""
    if not out.name.endswith(KEPT):
        raise UserError(f"--keep {out}: the name must end in {KEPT}, like kept/mine{KEPT}")
    return out, out.with_name(out.name.removesuffix(KEPT) + ".yaml")


def keep_predictions(predictions: Path, out: Path) -> None:
    """Write a table as `packed` makes it, the same bytes each time, and the parameters that it was made with.

    Parameters
    ----------
    predictions : as `read_predictions` takes it
    out : NAME.csv.gz; the parameters are NAME.yaml, not written where there are none

    Raises
    ------
    UserError : as `kept_files` and `read_predictions`
    """
    table, params = kept_files(out)
    content = packed(*read_predictions(predictions))
    used = parameters_of(predictions)
    with atomic_write(table) as temporary:
        guard_cells(content).to_csv(
            temporary, index=False, lineterminator="\n", compression={"method": "gzip", "compresslevel": 9, "mtime": 0}
        )
    if used:
        with atomic_write(params) as temporary:
            temporary.write_text(yaml.safe_dump(used, sort_keys=False, allow_unicode=True), encoding="utf-8")


def packed(table: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """A prediction table in a third of the space: T and b, the same in each row, in place of the probabilities."""
    known = calibration_of(table, classes)
    beside = {"temperature": known.temperature} | {f"bias_{name}": known.bias[i] for i, name in enumerate(classes)}
    return table.drop(columns=[f"p_{name}" for name in classes]).assign(**beside)


def is_packed(path: Path) -> bool:
    """Whether a file is a table that `packed` made."""
    with suppress(OSError, ValueError, EOFError, zlib.error):
        return {*ID_COLUMNS, "temperature"} <= set(pd.read_csv(path, nrows=0))
    return False


def is_parameters(path: Path) -> bool:
    """Whether a file holds parameters as `keep_predictions` writes them."""
    with suppress(OSError, ValueError, yaml.YAMLError):
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        return isinstance(content, dict) and {"task", "data", "prepare", "split", "model", "train"} <= content.keys()
    return False
