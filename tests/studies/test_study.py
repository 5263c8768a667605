"""`exp-tools study` in a project that ran: it ends with the same results after any number of kills."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml
from helpers.project import Project

from exp_tools.studies.members import Notes, hours_left, standing
from exp_tools.studies.plan import read_study
from exp_tools.studies.run import reason_of
from exp_tools.studies.slurm import array_script

STUDY = ("python", "-m", "exp_tools.cli", "study", "studies/two.yaml")
RESULTS = ("studies/two/comparison.*", "studies/two/README.md", "studies/two/two.yaml")
SMALL = {"model.name": "timm", "train.epochs": 3}


def settings(**learning_rates: float) -> dict:
    return {name: {"set": {"train.lr": rate}} for name, rate in learning_rates.items()}


def write_study(project: Project, content: dict) -> None:
    (project.folder / "studies/two.yaml").write_text(
        yaml.safe_dump({"common": {"set": SMALL}, "split": "test"} | content, sort_keys=False), encoding="utf-8"
    )


def start(project: Project, log: Path, *words: str) -> subprocess.Popen:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
    with log.open("a") as file:
        return subprocess.Popen(
            [sys.executable, *STUDY[1:], *words],
            cwd=project.folder,
            env=environment | {"DVC_NO_ANALYTICS": "1"},
            stdout=file,
            stderr=file,
            start_new_session=True,
        )


def processes_in(folder: Path) -> list[int]:
    """Processes whose working folder is the project, or one of DVC's in it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if Path(os.readlink(process / "cwd")).is_relative_to(folder) and int(process.name) != os.getpid():
                found.append(int(process.name))
        except OSError:
            continue
    return found


def kill_all(folder: Path) -> None:
    while found := processes_in(folder):
        for process in found:
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.1)


@pytest.fixture
def project(ran_project, tmp_path):
    project = ran_project.copy(tmp_path / "project")
    write_study(project, {"settings": settings(slow=0.001, fast=0.003), "seeds": [0]})
    return project


needs_proc = pytest.mark.skipif(not Path("/proc/self/cwd").exists(), reason="finds processes by /proc")


@needs_proc
@pytest.mark.parametrize(
    ("asked", "seeds", "kills"),
    [
        pytest.param({"one": 0.001}, [0], 1, marks=pytest.mark.sweep),
        pytest.param({"slow": 0.001, "fast": 0.003}, [0, 1, 2], 3, marks=pytest.mark.sweep),
    ],
    ids=["once", "three times"],
)
def test_killed_and_run_again_it_ends_with_the_same_bytes(project, tmp_path, asked, seeds, kills):
    write_study(project, {"settings": settings(**asked), "seeds": seeds})
    undisturbed = project.copy(tmp_path / "undisturbed")
    random_wait = random.Random(0)
    for _ in range(kills):
        process = start(project, tmp_path / "log", "-j", "2")
        time.sleep(random_wait.uniform(8, 20))
        kill_all(project.folder)
        process.wait()
    ended = project.run(*STUDY, "-j", "2")
    assert "Scores on test" in ended.stdout
    undisturbed.run(*STUDY)
    assert project.bytes_of(*RESULTS) == undisturbed.bytes_of(*RESULTS)
    again = project.run(*STUDY)
    assert "to run" not in again.stdout
    table = pd.read_csv(project.folder / "studies/two/members.csv")
    assert table["state"].tolist() == ["done"] * len(asked) * len(seeds)
    assert (table["hours"] > 0).all()


def test_what_failed_is_told(project):
    trainer = project.folder / "exp_tools/training/trainer.py"
    trainer.write_text("raise RuntimeError('the disk broke')\n", encoding="utf-8")
    failed = project.run(*STUDY, "--member", "two-fast-seed0", check=False)
    assert failed.returncode == 1
    assert "two-fast-seed0: failed: RuntimeError: the disk broke" in failed.stdout
    dry = project.run(*STUDY, "--dry").stdout
    assert "two-fast-seed0  failed   RuntimeError: the disk broke" in dry
    assert "1 failed, 1 missing" in dry


@pytest.mark.sweep
def test_what_failed_is_told_and_tried_again_on_request(project):
    trainer = project.folder / "exp_tools/training/trainer.py"
    before = trainer.read_text(encoding="utf-8")
    write_study(project, {"settings": settings(good=0.001, bad=0.003), "seeds": [0]})
    first = project.run(*STUDY, "--member", "two-good-seed0")
    assert first.stdout.endswith("two-good-seed0: done\n")
    trainer.write_text(before + "\nraise RuntimeError('the disk broke')\n", encoding="utf-8")
    failed = project.run(*STUDY, "--member", "two-bad-seed0", check=False)
    assert failed.returncode == 1
    assert "two-bad-seed0: failed: RuntimeError: the disk broke" in failed.stdout
    trainer.write_text(before, encoding="utf-8")
    dry = project.run(*STUDY, "--dry").stdout
    assert "two-bad-seed0   failed   RuntimeError: the disk broke" in dry
    assert "1 done, 1 failed" in dry
    assert "hours left" in dry
    kept = project.run(*STUDY, check=False)  # it is not tried again by itself, and a study of one setting is none
    assert kept.returncode == 1
    assert "bad has no member that is done" in kept.stderr
    retried = project.run(*STUDY, "--retry")
    assert "two-bad-seed0: done" in retried.stdout
    other = project.run(*STUDY[:4], "studies/two.yaml", "--slurm", "array.sh", check=False)
    assert "all 2 members are done" in other.stderr
    write_study(project, {"settings": settings(good=0.002, bad=0.003), "seeds": [0]})
    changed = project.run(*STUDY, check=False)
    assert "two-good-seed0 with other parameters (train.lr is 0.001 there and 0.002 in the study)" in changed.stderr
    project.run("dvc", "exp", "remove", "two-good-seed0")  # the remedy
    assert "two-good-seed0  missing" in project.run(*STUDY, "--dry").stdout


def test_a_study_of_old_images_names_the_way_out(project):
    path = project.folder / "params.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace("image_size: 32", "image_size: 40"), encoding="utf-8")
    refused = project.run(*STUDY, check=False)
    assert refused.returncode == 1
    assert "`dvc repro download prepare external` first" in refused.stderr


def test_a_members_lock_says_that_it_runs(project):
    study = read_study(project.folder / "studies/two.yaml", project.folder)
    notes = Notes(project.folder, "two", "two-slow-seed0")
    notes.log.parent.mkdir(parents=True)
    with notes.lock.acquire(timeout=0):
        held = subprocess.run(
            [
                sys.executable,
                "-c",
                f"from exp_tools.studies.members import Notes; from pathlib import Path; "
                f"print(Notes(Path({str(project.folder)!r}), 'two', 'two-slow-seed0').held())",
            ],
            capture_output=True,
            text=True,
        )
    assert held.stdout == "True\n"
    assert standing(study, study.members)["two-slow-seed0"].state == "missing"


def test_time_left_is_that_of_the_members_that_ended(project):
    study = read_study(project.folder / "studies/two.yaml", project.folder)
    now = standing(study, study.members)
    assert hours_left(study, now) is None
    done = {"two-slow-seed0": type(now["two-slow-seed0"])("done", "two-slow-seed0", "", 7200.0)}
    assert hours_left(study, now | done) == 2


def test_the_reason_is_the_line_that_names_the_error():
    assert reason_of("a\nerror: no GPU\nERROR: failed to reproduce 'train'\n") == "error: no GPU"
    assert reason_of("Traceback\nValueError: x\nthe end\n") == "ValueError: x"
    assert reason_of("only this\n\n") == "only this"
    assert reason_of("") == "it ended without a word"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_it_waits_for_dvc_stops_both(tmp_path, number):
    script = """
import subprocess, sys, time
from pathlib import Path
from exp_tools.errors import Stopped
from exp_tools.studies import run
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
try:
    with run.signals(lambda: run.stop_dvc(child)):
        print("waits", flush=True)
        child.wait()
except Stopped as stopped:
    print(stopped, child.poll())
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "waits\n"
    time.sleep(0.3)  # it is in waitpid now
    process.send_signal(number)
    try:
        said, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert said == "stopped; the same command goes on from here -15\n"


@pytest.mark.skipif(shutil.which("bash") is None, reason="the script is bash")
def test_the_array_has_a_task_for_each_member_and_comes_back_after_a_stop(project, tmp_path):
    study = read_study(project.folder / "studies/two.yaml", project.folder)
    script = array_script(study, list(study.members), 4)
    assert "#SBATCH --array=0-1%4" in script
    (tmp_path / "array.sh").write_text(script, encoding="utf-8")
    # In place of Python a script that writes its arguments, and ends as a stopped training does.
    (tmp_path / "python").write_text(
        "#!/bin/bash\ntrap 'sleep 1; echo saved >> said; exit 143' TERM\n"
        'echo "$@" >> said\n[ -z "$LONG" ] || for _ in {1..300}; do sleep 0.1; done\nexit ${STATUS:-0}\n'
    )
    (tmp_path / "scontrol").write_text('#!/bin/bash\necho "scontrol $@" >> said\n')
    text = script.replace(sys.executable, str(tmp_path / "python"))
    (tmp_path / "array.sh").write_text(text, encoding="utf-8")
    for name in ("python", "scontrol"):
        (tmp_path / name).chmod(0o755)
    said = project.folder / "said"
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_JOB_ID": "9"}
    assert subprocess.run(["bash", tmp_path / "array.sh"], env=environment).returncode == 0
    assert said.read_text().strip().endswith("--member two-fast-seed0")
    assert subprocess.run(["bash", tmp_path / "array.sh"], env=environment | {"STATUS": "1"}).returncode == 1
    assert "scontrol" not in said.read_text()
    said.unlink()
    after = {signal.SIGUSR1: ["saved", "scontrol requeue 9_1"], signal.SIGTERM: ["saved"]}  # its time is up, scancel
    for number, written in after.items():
        process = subprocess.Popen(["bash", tmp_path / "array.sh"], env=environment | {"LONG": "1"})
        while not said.is_file():
            time.sleep(0.1)
        for _ in range(2):  # Slurm may say it twice; what saves its state is waited for all the same
            process.send_signal(number)
            time.sleep(0.3)
        assert process.wait(timeout=30) == 143
        assert said.read_text().splitlines()[1:] == written
        said.unlink()
    assert "--signal=B:USR1@" in script  # without B: it goes to job steps, of which there are none
