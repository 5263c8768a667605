"""Every notebook runs on what the pipeline wrote, and is committed without outputs."""

from pathlib import Path

import nbformat
import pytest
from helpers.project import ROOT
from nbclient import NotebookClient

SAID = {
    "1-data": ("60 images", "lesions in two splits: 0"),
    "2-training": ("soft_attention on synthetic", "epochs run: 2", "meant to find of melanomas"),
    "3-evaluation": ("images of", "balanced_accuracy", "gaps clear of chance"),
    "4-compare-experiments": ("0 experiments next to the workspace: none yet",),
    "5-explain": ("too coarse to say where", "everything"),
}
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_it_is_committed_without_outputs(path):
    for cell in nbformat.read(path, as_version=4).cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_it_ends_with_an_exercise(path):
    last = nbformat.read(path, as_version=4).cells[-1]
    assert last.cell_type == "markdown"
    assert last.source.startswith("## Exercise")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_it_runs(path: Path, ran_project, monkeypatch):
    monkeypatch.delenv("MPLBACKEND", raising=False)  # what a test of the web app leaves would show no picture
    notebook = nbformat.read(path, as_version=4)
    folder = ran_project.folder / "notebooks"
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(folder)}}).execute()
    text = "\n".join(
        str(output.get("text", "")) + str(output.get("data", {}).get("text/plain", ""))
        for cell in notebook.cells
        for output in cell.get("outputs", [])
    )
    for words in SAID[path.stem]:
        assert words in text
    assert any("image/png" in output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", []))
