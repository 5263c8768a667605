"""What `make repro` and the stages say in a folder that is no ordinary clone: a ZIP, a repository without a commit."""

import re
import shutil

import pytest
from helpers.project import ROOT, TINY, clone


def test_a_zip_is_told_what_is_missing_before_anything_is_installed(tmp_path):
    project = clone(tmp_path / "project", TINY)
    shutil.rmtree(project.folder / ".git")
    done = project.run("make", "repro", check=False)
    assert done.returncode != 0
    assert "not a Git repository, which DVC needs" in done.stderr
    assert not (project.folder / ".venv").exists()
    project.run("bash", "-c", "git init -q && git add -A")
    done = project.run("make", "repro", check=False)
    assert "no commit here yet" in done.stderr
    project.run("bash", "-c", "git commit -qm start")  # the remedy
    assert "dvc repro" in project.run("make", "-n", "repro").stdout


@pytest.mark.parametrize("target", ["clean", "install"])
@pytest.mark.parametrize("kind", ["folder", "link"])
def test_a_venv_that_is_none_is_not_emptied(tmp_path, target, kind):
    project = clone(tmp_path / "project", TINY)
    mine = (project.folder if kind == "folder" else tmp_path) / (".venv" if kind == "folder" else "mine")
    mine.mkdir()
    (mine / "notes.txt").write_text("mine")
    (project.folder / "my.egg-info").write_text("mine")
    if kind == "link":
        (mine / "pyvenv.cfg").write_text("")  # an environment without its Python
        (project.folder / ".venv").symlink_to(mine)
    done = project.run("make", target, "PYTHON=false", check=False)
    assert (mine / "notes.txt").read_text() == "mine"
    assert (project.folder / "my.egg-info").read_text() == "mine"
    if kind == "folder":
        assert "The folder .venv is no environment of Python" in done.stderr
    elif target == "install":
        assert ".venv is a link to an environment that does not work: rm .venv" in done.stderr


def test_training_in_a_repository_without_a_commit_is_one_line(ran_project, tmp_path):
    project = ran_project.copy(tmp_path / "project")
    shutil.rmtree(project.folder / ".git")
    project.run("git", "init", "-q")
    done = project.run("python", "-m", "stages.train", check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "Git has no commit to which the training curves could belong" in done.stderr
    project.run("bash", "-c", "git add -A && git commit -qm start")
    told = project.run("python", "-m", "stages.train").stdout
    lines = [line for line in told.splitlines() if line.startswith("epoch ")]
    assert [line.split(":")[0] for line in lines] == ["epoch 1/2", "epoch 2/2"]
    assert all("validation loss 0." in line or "validation loss " in line for line in lines)
    assert all(" images/s, " in line and line.endswith(" left") for line in lines)
    assert "(best)" in told


def test_the_way_back_to_the_committed_results_touches_nothing_else(ran_project, tmp_path):
    """What `make repro` names when only the processor differs; DVC has staged dvc.lock by then."""
    (remedy,) = re.findall(r"Back to those: (git [^\"]+)\"", (ROOT / "Makefile").read_text())
    assert remedy in (ROOT / "docs/troubleshooting.md").read_text()
    project = ran_project.copy(tmp_path / "project")
    for name in ("metrics/evaluate.json", "MODEL_CARD.md", "dvc.lock", "plots/curves/roc.csv", "README.md"):
        path = project.folder / name
        path.write_text(path.read_text() + "\n")
    (project.folder / "notebooks/mine.ipynb").write_text("{}")
    project.run("git", "add", "dvc.lock")
    project.run("bash", "-c", remedy)
    assert project.run("git", "status", "--short").stdout.split() == ["M", "README.md", "??", "notebooks/mine.ipynb"]
