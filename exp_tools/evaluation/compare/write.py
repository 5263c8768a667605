"""Write a comparison: as Markdown, as a table, and as a forest plot."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exp_tools.evaluation.compare.forest import draw_forest
from exp_tools.evaluation.compare.render import as_markdown, as_table
from exp_tools.io import atomic_write, write_csv


def write_comparison(prefix: Path, found: Mapping[str, Any]) -> None:
    """Write PREFIX.md, PREFIX.csv and PREFIX.png of what `compare_groups` found."""
    with atomic_write(Path(f"{prefix}.md")) as temporary:
        temporary.write_text(as_markdown(found), encoding="utf-8")
    write_csv(Path(f"{prefix}.csv"), as_table(found))
    draw_forest(Path(f"{prefix}.png"), found)
