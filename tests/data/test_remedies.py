"""What a message tells the user to do works when it is done: under DVC, in the user's own folder."""

import sys

import pytest
import yaml
from helpers.datasets import save, write_table
from helpers.project import Project, clone

from exp_tools.data.acquire.managed_folder import MARKER

TOOLS = ("python", "-m", "exp_tools.cli")


@pytest.fixture
def project(tmp_path) -> Project:
    """A project whose images are a folder with a table, in which the last image is missing."""
    mine = tmp_path / "mine"
    for number in range(20):
        save(mine / f"I{number}.png", number)
    rows = [f"I{number},L{number},{('nv', 'mel')[number % 2]}" for number in range(21)]
    write_table(mine / "t.csv", rows, "image_id,lesion_id,dx")
    made = clone(tmp_path / "project", {"prepare": {"image_size": 32}, "machine": {"threads": 1}})
    path = made.folder / "params.yaml"
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    content["data"] |= {"source": "table", "dir": str(mine)}
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return made


@pytest.mark.sweep
def test_dvc_repro_looks_at_the_folder_again_after_a_problem(project, tmp_path):
    mine, raw = tmp_path / "mine", project.folder / "data/raw"
    repro = ("dvc", "repro", "prepare")

    def stopped() -> str:
        done = project.run(*repro, check=False)
        assert done.returncode != 0
        return done.stdout + done.stderr

    assert "no image file for 'I20'" in stopped()
    assert [path.name for path in raw.iterdir()] == [MARKER]
    save(mine / "I20.png", 20)  # "add it"
    save(mine / "again/I3.png", 99)
    assert "several files are called 'I3'" in stopped()
    (mine / "I3.png").unlink()  # "keep the right one": DVC itself fails at a link whose file is gone
    (mine / "I4.png").write_bytes(b"broken")
    assert "I4" in stopped()
    save(mine / "I4.png", 4)
    assert "Running stage 'download'" in project.run(*repro).stdout
    labels = (project.folder / "data/prepared/labels.csv").read_text().splitlines()
    assert len(labels) == 22
    assert len(list(raw.rglob("*.png"))) == 21
    assert "didn't change, skipping" in project.run(*repro).stdout
    assert "has all files" in project.run(*TOOLS, "data", "check").stdout
    save(mine / "I21.png", 21)
    with (mine / "t.csv").open("a") as table:
        table.write("I21,L21,nv\n")
    done = project.run(*TOOLS, "data", "check", check=False)
    assert done.returncode == 1
    assert "new in data.dir: I21.png" in done.stdout
    assert "1 new files since `download`, and 0 less" in project.run(*TOOLS, "doctor", check=False).stdout
    (mine / "I0.png").unlink()
    assert "No such file" in stopped()  # all that DVC says
    said = f"data/raw/I0.png is a link to {mine}/I0.png, which is not there any more (1 such links in data/raw)"
    for command, status in ((("data", "check"), 3), (("doctor",), 1)):
        done = project.run(*TOOLS, *command, check=False)
        assert (done.returncode, said in done.stdout) == (status, True), done.stdout
        assert "dvc repro -f -s download" in done.stdout
    with_make(project)
    done = project.run("make", "repro", check=False)
    assert done.returncode != 0
    assert said in done.stdout
    assert "failed to reproduce" not in done.stdout + done.stderr
    (mine / "t.csv").write_text((mine / "t.csv").read_text().replace("I0,L0,nv\n", ""))
    project.run("dvc", "repro", "-f", "-s", "download")  # as it says
    project.run(*repro)
    assert len((project.folder / "data/prepared/labels.csv").read_text().splitlines()) == 22
    assert sum(path.suffix == ".png" for path in mine.rglob("*")) == 21  # what the user has left, and no less


def with_make(project: Project) -> None:
    """Give the project what `make` takes for its environment: the one that runs the tests."""
    python = project.folder / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    (project.folder / ".venv/.installed").touch()


EVERYTHING = {"prepare.clahe": "true", "explain.seed": "1", "evaluate.seed": "1"}


@pytest.mark.parametrize("changes", [{"explain.seed": "1"}, pytest.param(EVERYTHING, marks=pytest.mark.sweep)])
def test_files_of_the_users_among_figures_stay_or_are_named_before_anything_runs(ran_project, tmp_path, changes):
    project = ran_project.copy(tmp_path / "project")
    mine = [project.folder / f"{place}/mine.txt" for place in ("plots/data", "plots/explain", "plots/curves")]
    lost = [project.folder / f"{place}/mine.txt" for place in ("plots/figures", "metrics/train")]
    for path in (*mine, *lost):
        path.write_text("mine")
    with_make(project)
    done = project.run("make", "repro", check=False)
    assert done.returncode != 0
    assert "plots/figures/mine.txt is not the pipeline's (and 1 more), and DVC deletes it" in done.stdout
    for path in lost:
        path.rename(project.folder / f"{path.parent.name}.txt")
    project.run("dvc", "exp", "run", *(word for name, value in changes.items() for word in ("-S", f"{name}={value}")))
    project.run("dvc", "checkout", "--force")
    assert [path.read_text() for path in mine] == ["mine"] * 3
    assert project.run(*TOOLS, "data", "check").returncode == 0


@pytest.mark.sweep
def test_an_external_set_and_a_table_that_cannot_be_read_are_looked_at_again_too(project, tmp_path):
    mine, clinic = tmp_path / "mine", tmp_path / "clinic"
    save(mine / "I20.png", 20)
    (mine / "copy.csv").write_text("image_id,dx\nI1,mel\n")
    repro = ("dvc", "repro", "external")

    def stopped() -> str:
        done = project.run(*repro, check=False)
        assert done.returncode != 0
        return done.stdout + done.stderr

    assert "more than one table with the columns image_id and dx: copy.csv, t.csv" in stopped()
    (mine / "copy.csv").unlink()
    for number in range(4):
        save(clinic / ("mel", "nv")[number % 2] / f"c{number}.png", 100 + number)
    path = project.folder / "params.yaml"
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    content["data"]["external"] = {"clinic": {"source": "folder", "dir": str(clinic)}}
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    project.run(*repro)
    (clinic / "nv/c9.png").write_bytes(b"broken")
    content["prepare"]["on_problem"]["unlisted_image"] = "stop"  # a parameter of the stage, so that it runs again
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    assert "c9" in stopped()
    (clinic / "nv/c9.png").unlink()  # DVC would fail at the link
    project.run(*repro)
    assert len(list((project.folder / "data/external_raw").rglob("*.png"))) == 4
