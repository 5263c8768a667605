"""A run that is killed, stopped or out of disk resumes where it was, and ends with the bytes of one that was not."""

import copy
import errno
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from helpers.project import Project, merge

from exp_tools.cli.main import main as cli
from exp_tools.errors import UserError
from exp_tools.training import checkpoints
from exp_tools.training.checkpoints import RunStore, delete_run, fingerprint, list_runs

RUN = "0123456789abcdef"
OUTS = ("models/network.safetensors", "metrics/train/**/*")
BUSY = {  # everything that has a state or a draw of its own
    "train": {
        "epochs": 4,
        "batch_size": 4,
        "accumulate": 2,
        "optimizer": "adam",
        "schedule": "plateau",
        "plateau_patience": 1,
        "frozen_epochs": 1,
        "layer_decay": 0.7,
        "mixup": 0.2,
        "cutmix": 0.5,
        "checkpointing": True,
        "augment": {"preset": "trivial", "erase": 0.5},
        "ema": 0.9,
        "patience": None,
    },
    "model": {"soft_attention": {"drop_path": 0.2}},
}


@pytest.fixture
def project(ran_project, tmp_path) -> Project:
    """A project whose data are ready and whose training takes seconds."""
    project = ran_project.copy(tmp_path / "project")
    change(project, **BUSY, machine={"checkpoint_steps": 1})
    return project


def change(project: Project, **sections: dict) -> None:
    path = project.folder / "params.yaml"
    content = yaml.safe_load(path.read_text())
    merge(content, copy.deepcopy(sections))
    path.write_text(yaml.safe_dump(content))


def train(project: Project, **options) -> subprocess.CompletedProcess[str]:
    return project.run(sys.executable, "-m", "stages.train", **options)


def left_over(project: Project) -> list[str]:
    return sorted(path.name for path in (project.folder / "runs").glob("*"))


KILLER = """
import os, random, signal, sys, time
from pathlib import Path
import torch
import exp_tools.models.architectures.soft_attention
import stages.train
from exp_tools.errors import run_main

def child():
    pid = os.fork()
    if pid == 0:
        run_main(stages.train.main)
        os._exit(0)
    return pid

start = time.monotonic()
assert os.waitpid(child(), 0)[1] == 0
whole = time.monotonic() - start
Path("models").rename("models-whole")
Path("metrics/train").rename("metrics/train-whole")

chance, kills, early, places = random.Random(int(sys.argv[2])), 0, 0, set()
while kills < int(sys.argv[1]) or (len(places) <= int(sys.argv[1]) // 4 and kills < 100):
    pid = child()
    time.sleep(chance.uniform(0, whole / 2))
    if os.waitpid(pid, os.WNOHANG)[0]:
        early += 1  # it was done already, and what comes next begins again
        continue
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    kills += 1
    places |= {path.read_text() for path in Path("runs").glob("*/run.json")}
assert os.waitpid(child(), 0)[1] == 0
print(f"{kills} kills, {early} early ends, {whole:.1f} s")
"""


@pytest.mark.parametrize("kills", [8, pytest.param(20, marks=pytest.mark.sweep)])
def test_kills_change_no_byte(project, kills):
    done = project.run(sys.executable, "-c", KILLER, str(kills), "0")
    assert int(done.stdout.strip().splitlines()[-1].split()[0]) >= kills
    resumed = {line for line in done.stdout.splitlines() if line.startswith("resuming after epoch")}
    assert len(resumed) >= kills / 4, "the kills came too early to prove anything"
    folder = project.folder
    whole = (folder / "models-whole/network.safetensors").read_bytes()
    assert (folder / "models/network.safetensors").read_bytes() == whole
    curves = project.bytes_of("metrics/train/**/*")
    assert len(curves) >= 6
    for name, content in curves.items():
        assert content == (folder / name.replace("metrics/train", "metrics/train-whole", 1)).read_bytes(), name
    assert left_over(project) == []


TO_ALL = pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="loader processes take SIGTERM from anyone here")


@pytest.mark.parametrize(
    ("number", "send", "workers"),
    [
        (signal.SIGINT, "os.kill(os.getpid(), signal.SIGINT)", 0),
        pytest.param(
            signal.SIGTERM, "subprocess.run(['bash', '-c', 'kill -TERM 0']); time.sleep(1)", 2, id="all", marks=TO_ALL
        ),
    ],
)
def test_a_signal_ends_after_the_step_with_the_state_saved(project, straight, number, send, workers):
    script = (
        "import os, signal, subprocess, time\n"
        "os.setsid(); signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import stages.train as t; from exp_tools.training import trainer\n"
        "from exp_tools.errors import run_main\n"
        "step = trainer.Trainer.step; count = []\n"
        "def counted(self, *a):\n"
        "    count.append(1)\n"
        f"    if len(count) == 3: {send}\n"
        "    step(self, *a)\n"
        "trainer.Trainer.step = counted\n"
        "run_main(t.main)"
    )
    change(project, machine={"checkpoint_steps": None, "workers": workers})
    stopped = project.run(sys.executable, "-c", script, check=False)
    assert stopped.returncode == 128 + number, stopped.stderr
    assert "stopped after epoch 1, step 3; the state is saved" in stopped.stderr
    assert len(left_over(project)) == 1
    done = train(project)
    assert "resuming after epoch 0, step 3" in done.stdout
    assert project.bytes_of(*OUTS) == straight


@pytest.fixture(scope="module")
def straight(ran_project, tmp_path_factory) -> dict[str, bytes]:
    """What a run gives that nothing stopped."""
    project = ran_project.copy(tmp_path_factory.mktemp("straight") / "project")
    change(project, **BUSY, machine={"checkpoint_steps": None})
    train(project)
    return project.bytes_of(*OUTS)


OTHERS = """
import os
from pathlib import Path
import exp_tools.models.architectures.soft_attention
import stages.train
from exp_tools.errors import run_main
from exp_tools.training import trainer

def run():
    pid = os.fork()
    if pid == 0:
        run_main(stages.train.main)
    print("ended with", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), sorted(os.listdir("runs")), flush=True)

step, count = trainer.Trainer.step, []
def stopping(self, *given):
    count.append(1)
    step(self, *given)
    if len(count) == 3:
        os._exit(9)
trainer.Trainer.step = stopping
run()
trainer.Trainer.step = step
parameters, code = Path("params.yaml"), Path("exp_tools/training/trainer.py")
before = parameters.read_text()
parameters.write_text(before.replace("lr: 0.001", "lr: 0.002", 1))
assert parameters.read_text() != before
run()
parameters.write_text(before)
with code.open("a") as file:
    file.write("# another code\\n")
run()
code.write_text(code.read_text().replace("# another code\\n", ""))
run()
"""


def test_another_run_never_takes_the_state(project):
    lines = project.run(sys.executable, "-c", OTHERS).stdout.splitlines()
    stopped, other_parameters, other_code, same = [line for line in lines if line.startswith("ended with")]
    assert stopped.startswith("ended with 9 ['")
    assert other_parameters == other_code == stopped.replace("9", "0", 1)
    resumed = [number for number, line in enumerate(lines) if line.startswith("resuming after epoch 0, step 2")]
    assert len(resumed) == 1
    assert resumed[0] > lines.index(other_code)
    assert same == "ended with 0 []"


def interrupted(project: Project) -> list[str]:
    """Stop a run after its second step; returns what it left."""
    script = (
        "import stages.train as t; from exp_tools.training import trainer\n"
        "step = trainer.Trainer.step; count = []\n"
        "def counted(self, *a):\n    count.append(1); step(self, *a); len(count) == 3 and __import__('os')._exit(9)\n"
        "trainer.Trainer.step = counted; t.main()"
    )
    assert project.run(sys.executable, "-c", script, check=False).returncode == 9
    names = [name for name in left_over(project) if not name.endswith(".lock")]
    assert len(names) == 1
    for lock in (project.folder / "runs").glob("*.lock"):
        lock.unlink()
    return left_over(project)


def test_runs_are_listed_and_deleted(project, monkeypatch, capsys):
    (name,) = interrupted(project)
    monkeypatch.chdir(project.folder)
    assert cli(["runs"]) == 0
    shown = capsys.readouterr().out
    assert name in shown
    assert "soft_attention" in shown
    assert "epoch 0 of 4, step 2" in shown
    assert cli(["runs", "--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert entry["name"] == name
    assert entry["megabytes"] > 0
    assert cli(["runs", "--delete", "other"]) == 1
    assert "no left-over run 'other'" in capsys.readouterr().err
    assert cli(["runs", "--delete", name]) == 0
    assert left_over(project) == []
    assert cli(["runs"]) == 0
    assert "no unfinished runs" in capsys.readouterr().out


# --- the store alone


def test_the_state_and_its_best_weights_come_back(tmp_path):
    with RunStore(tmp_path, "a", {}) as store:
        assert store.load() is None
        store.save_best(1, {"weights": {"w": torch.ones(2)}})
        store.save({"x": torch.zeros(3)}, 1, {}, {"epoch": 1})
        store.save_best(3, {"weights": {"w": torch.full((2,), 3.0)}})  # killed before the state names it
    with RunStore(tmp_path, "a", {}) as store:
        state = store.load()
        assert torch.equal(state["best"]["weights"]["w"], torch.ones(2))
        store.save_best(2, {"weights": {"w": torch.full((2,), 2.0)}})
        store.save({"x": torch.ones(3)}, 2, {}, {"epoch": 2})
        assert {path.name for path in store.folder.glob("*.pt")} == {"state.pt", "best-2.pt"}
        store.finish()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_keeps_the_last_good_state_and_is_said(tmp_path, monkeypatch, capsys):
    with RunStore(tmp_path, "a", {}) as store:
        store.save_best(1, {"weights": {}})
        assert store.save({"x": torch.zeros(3)}, 1, {"weights": {}}, {})

        def full(content, path):
            Path(path).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(checkpoints.torch, "save", full)
            store.save_best(2, {"weights": {}})
            assert not store.save({"x": torch.ones(3)}, 2, {"weights": {}}, {})
        assert "could not be written" in capsys.readouterr().err
        assert {path.name for path in store.folder.iterdir()} == {"state.pt", "best-1.pt", "run.json"}
        assert torch.equal(store.load()["x"], torch.zeros(3))

        assert store.save({"x": torch.ones(3)}, 2, {"weights": {"w": torch.ones(1)}}, {})  # there is room again
        assert {path.name for path in store.folder.iterdir()} == {"state.pt", "best-2.pt", "run.json"}
        assert torch.equal(store.load()["x"], torch.ones(3))
        assert torch.equal(store.load()["best"]["weights"]["w"], torch.ones(1))


def test_what_a_killed_process_had_half_written_is_removed(tmp_path):
    with RunStore(tmp_path, "a", {}) as store:
        store.save({"x": torch.zeros(3)}, 0, {}, {})
        (store.folder / ".state.pt.123.tmp").write_bytes(b"half")
    with RunStore(tmp_path, "a", {}) as store:
        assert {path.name for path in store.folder.iterdir()} == {"state.pt", "run.json"}


def test_a_users_files_in_runs_stay(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/mine.txt").write_text("mine")
    runs = tmp_path / "runs"
    with RunStore(runs, RUN, {}) as store:
        store.save({"x": torch.zeros(3)}, 0, {}, {})
        (store.folder / "notes.txt").write_text("mine")
        (runs / "studies").mkdir()
        (runs / "link").symlink_to(tmp_path / "elsewhere")
        store.finish()
        assert [path.name for path in store.folder.iterdir()] == ["notes.txt"]
    assert [run.folder.name for run in checkpoints.list_runs(runs)] == [RUN]
    checkpoints.delete_run(runs, RUN)
    for other in ("link", "studies"):
        with pytest.raises(UserError, match=f"there is no left-over run '{other}'"):
            checkpoints.delete_run(runs, other)
    assert (runs / RUN / "notes.txt").read_text() == (tmp_path / "elsewhere/mine.txt").read_text() == "mine"


def test_a_damaged_state_starts_anew_and_is_said(tmp_path, capsys):
    with RunStore(tmp_path, "a", {}) as store:
        (store.folder / "state.pt").write_bytes(b"junk")
        assert store.load() is None
    assert "training starts again" in capsys.readouterr().err


def test_one_run_is_trained_by_one_process(tmp_path):
    with RunStore(tmp_path, RUN, {}):
        with pytest.raises(UserError, match="another process is training this very run"), RunStore(tmp_path, RUN, {}):
            pass
        (run,) = list_runs(tmp_path)
        assert run.running
        with pytest.raises(UserError, match="under way"):
            delete_run(tmp_path, RUN)
        with RunStore(tmp_path, RUN[::-1], {}):
            pass
    assert [run.running for run in list_runs(tmp_path)] == [False, False]


def test_the_fingerprint_stands_for_facts_and_code(tmp_path, monkeypatch):
    first = fingerprint({"lr": 0.1, "x": None})
    assert first == fingerprint({"x": None, "lr": 0.1})
    assert first != fingerprint({"lr": 0.2, "x": None})
    monkeypatch.setattr(checkpoints, "code_digest", lambda: "other")
    assert first != fingerprint({"lr": 0.1, "x": None})
