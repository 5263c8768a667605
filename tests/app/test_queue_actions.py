"""The experiments page's own rules: names, data folders, logs, and what can be done with a task."""

import json
import subprocess
from pathlib import Path

import pytest
from helpers.datasets import ROOT

pytest.importorskip("streamlit")

from exp_tools.app.pages import experiments
from exp_tools.app.parts import data_roots, evaluations, experiment_queue
from exp_tools.app.parts.experiment_queue import Task
from exp_tools.errors import UserError
from exp_tools.project import TRAIN_METRICS


@pytest.fixture
def project(tmp_path) -> Path:
    """A repository with parameters, a recipe, a branch and a tag; next to it a data folder and a secret."""
    root = tmp_path / "project"
    (root / "recipes").mkdir(parents=True)
    (root / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    (root / "recipes/slow.yaml").write_text("# slow\ntrain:\n  epochs: 40\n")
    for name in ("data/good/own", "secret"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "labels.csv").write_text("image_id\n")
    (tmp_path / "data/link").symlink_to(tmp_path / "secret")
    git(root, "init", "-q", "-b", "main")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "start")
    git(root, "tag", "v1")
    return root


def git(folder: Path, *command: str) -> str:
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    done = subprocess.run(["git", *identity, *command], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def asked(monkeypatch) -> list[tuple[str, ...]]:
    """The commands that DVC was given; it answers as if it had queued `mine`."""
    commands = []

    def dvc(root, *command, worker=True):
        commands.append(command)
        return "Queued experiment 'mine' for future execution."

    monkeypatch.setattr(experiment_queue, "_dvc", dvc)
    return commands


@pytest.mark.parametrize("name", ["main", "v1", "HEAD", "workspace"])
def test_a_name_that_means_something_already_is_refused(project, asked, name):
    with pytest.raises(UserError, match=f"the name '{name}' is taken"):
        experiment_queue.queue(project, name, [])
    assert asked == []


def test_a_new_name_is_queued_and_dvcs_own_is_told(project, asked):
    assert experiment_queue.queue(project, "new-one", []) == "mine"
    assert asked[0] == ("exp", "run", "--queue", "--name", "new-one")


@pytest.mark.parametrize(
    "changes",
    [
        {"data.source": "table", "data.dir": "{top}/secret", "data.table": "labels.csv"},
        {"data.dir": "{top}/data/../secret"},
        {"data.dir": "{top}/data/link"},
        {"data.dir": "~"},
        {"data.second_dir": "/etc"},
        {"data.dir": "{top}/data/good/own", "data.table": "../../../secret/labels.csv"},
        {"data.dir": "{top}/data/good/own", "data.table": "{top}/secret/labels.csv"},
        {"data.dir": "{top}/data/good/own", "data.table": "params.yaml"},
        {"data.table": "params.yaml"},
        {"data.external": {"x": {"source": "table", "dir": "{top}/secret", "table": "labels.csv"}}},
        {"model.weights": "{top}/secret/w.pth"},
        {"model.weights": "local-dir:{top}/secret"},
        {"model.timm.backbone": "local-dir:../secret"},
        {"model.timm.options": {"pretrained_cfg_overlay": {"file": "{top}/secret/w.pth"}}},
        {"model.probe.encoders": [{"backbone": "test_vit", "weights": "{top}/data/link/w.pth"}]},
    ],
)
def test_a_visitor_names_no_file_outside_of_the_data_folders(project, changes):
    top = project.parent
    filled = json.loads(json.dumps(changes).replace("{top}", str(top)))
    with pytest.raises(UserError, match=r"data folder|is no file in data"):
        experiment_queue.chosen_words(project, None, filled, [str(top / "data")])


def test_a_visitor_names_what_is_in_the_data_folders(project):
    top = project.parent
    changes = {"data.source": "table", "data.dir": f"{top}/data/good/own", "data.table": "labels.csv"}
    assert "data.table=labels.csv" in experiment_queue.chosen_words(project, None, changes, [str(top / "data")])
    for weights in ("none", "imagenet", f"{top}/data/good/w.pth"):
        experiment_queue.chosen_words(project, None, {"model.weights": weights}, [str(top / "data")])
    with pytest.raises(UserError, match="started without one"):
        experiment_queue.chosen_words(project, None, changes)
    assert experiment_queue.chosen_words(project, None, {"data.source": "synthetic"}) == ["-S", "data.source=synthetic"]


def test_folders_to_choose_are_the_roots_and_those_in_them(project):
    top = project.parent
    assert data_roots.folders([str(top / "data")]) == [f"{top}/data", f"{top}/data/good", f"{top}/data/link"]


def test_a_table_to_evaluate_is_in_its_folder(project):
    folder = project.parent / "data/good/own"
    evaluations.require_table(str(folder), "labels.csv")
    for table in ("../own/nothing.csv", "../../../secret/labels.csv", "", None):
        with pytest.raises(UserError, match="is no file in"):
            evaluations.require_table(str(folder), table)


def test_a_failed_task_is_queued_again_with_its_parameters(project, asked):
    text = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(text.replace("  epochs: ", "  epochs: 1", 1))
    git(project, "commit", "-qam", "what was queued")
    task = Task(git(project, "rev-parse", "--short=7", "HEAD"), "mine", "Failed")
    git(project, "reset", "-q", "--hard", "v1")
    assert experiment_queue.retry(project, task) == "mine"
    removed, queued, started = asked
    assert removed == ("queue", "remove", task.id)
    assert queued[:5] == ("exp", "run", "--queue", "--name", "mine")
    assert queued[5] == "-S"
    assert queued[6].startswith("train.epochs=1")
    assert started[:2] == ("queue", "start")
    with pytest.raises(UserError, match="does not have the parameters"):
        experiment_queue.retry(project, Task("0000000", "gone", "Failed"))


TRACEBACK = """Running stage 'train':
training timm
Traceback (most recent call last):
  File "trainer.py", line 1, in fit
    step()

  File "x.py", line 2
KeyboardInterrupt
ERROR: interrupted by the user
"""


@pytest.mark.parametrize(
    ("log", "code", "killed"),
    [
        (TRACEBACK, 252, True),
        ("Running stage 'train':\n", -9, True),
        ("Running stage 'train':\nerror: no image\n", 255 - 128, False),
        ("Running stage 'train':\n", 0, False),
    ],
)
def test_a_killed_run_is_told_from_a_failed_one_and_no_traceback_is_shown(project, log, code, killed):
    task = Task("84e0397", "mine", "Failed")
    work = project / ".dvc/tmp/exps/run/84e03974b5"
    work.mkdir(parents=True)
    (work / "84e03974b5.out").write_text(log)
    (work / "84e03974b5.json").write_text(json.dumps({"pid": 1, "returncode": code}))
    progress = experiment_queue.progress(project, task, str(TRAIN_METRICS))
    assert progress.killed == killed
    assert progress.stage == "train"
    assert "Traceback" not in progress.log
    assert "trainer.py" not in progress.log


def test_what_was_queued_stays_in_the_list_until_it_runs(monkeypatch):
    import streamlit

    streamlit.cache_data.clear()
    streamlit.cache_resource.clear()
    listed: list[Task] = []
    monkeypatch.setattr(experiment_queue, "tasks", lambda root: list(listed))

    def shown() -> list[Task]:
        experiments._listed.clear()
        return experiments._tasks("root")

    experiments._announce("mine")
    assert shown() == [Task("", "mine", "Queued")]
    listed.append(Task("84e0397", "mine", "Queued"))
    assert shown() == listed
    listed.clear()  # on its way to the worker
    assert shown() == [Task("", "mine", "Queued")]
    listed.append(Task("84e0397", "mine", "Running"))
    assert shown() == listed
    listed.clear()  # removed after it ran
    assert shown() == []
