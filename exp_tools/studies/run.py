"""Run the members of a study: some at a time, going on after any stop.

Each member is `dvc exp run --temp` in a process of its own, and not a task of DVC's queue: the queue shows a task whose
worker was killed as running for ever, so that nobody can tell when to repeat it. Here a member is held by a lock that
ends with its process; several of these commands, on one machine or on a shared disk, divide a study among them.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

from filelock import Timeout

from exp_tools.errors import Stopped, UserError
from exp_tools.studies.members import Notes, Standing, standing, time_left
from exp_tools.studies.plan import Member, Study, needs_data_stages
from exp_tools.system import own_python_first

DATA_STAGES = ("download", "prepare", "external")
OWN_STAGES = ("features", "split", "train", "ood", "calibrate", "evaluate")
"""What a member runs where it has the workspace's images."""
BUSY = ("another process is training this very run", "Unable to acquire lock")
"""What the stage `train` says where one that lost its `dvc` is still at work, and DVC while another one begins."""
TRIES = 30
"""How often DVC is asked about the images while another command of it is at work."""
LOOK, WAIT, SAY = 2.0, 10.0, 60.0
"""Seconds between looks at the members, between tries of one that is busy, and between lines of progress."""
SAVES = 120.0
"""Seconds that a training which was told to stop has for saving its state."""


def run_member(study: Study, member: Member) -> Standing:
    """Run one member to its end in this process, or wait for the one that does; its standing then.

    Raises
    ------
    Stopped : a signal came; training has saved its state, and the same command goes on
    UserError : the workspace's images are not up to date
    """
    notes = Notes(study.root, study.name, member.name)
    notes.log.parent.mkdir(parents=True, exist_ok=True)
    while True:
        try:
            with notes.lock.acquire(timeout=0):
                if standing(study, [member])[member.name].state == "done":
                    break
                if not needs_data_stages(member.params, study.now):
                    require_data(study.root)
                start = time.monotonic()
                status = _dvc(study, member, notes.log)
                if status == 0:
                    notes.write(seconds=time.monotonic() - start)
                    break
                said = notes.log.read_text(encoding="utf-8", errors="replace")
                if not is_busy(said):
                    notes.write(seconds=time.monotonic() - start, failed=reason_of(said))
                    break
        except Timeout:
            pass
        time.sleep(WAIT)
    return standing(study, [member])[member.name]


def run_study(
    study: Study, *, jobs: int, retry: bool = False, say: Callable[[str], None] = print
) -> dict[str, Standing]:
    """Run the members that are missing, `jobs` at a time; the standing of all at the end.

    Parameters
    ----------
    jobs : members at a time; on a machine with several GPUs each has one of its own, in turns
    retry : run those again that failed before
    say : takes lines of progress

    Raises
    ------
    Stopped : a signal came; members were told to save their state
    UserError : an experiment of a member's name ran with other parameters; the workspace's images are not up to date
    """
    now = standing(study, study.members)
    waiting = [
        member
        for member in study.members
        if now[member.name].state in (("missing", "running", "failed") if retry else ("missing", "running"))
    ]
    if retry:
        for member in waiting:
            Notes(study.root, study.name, member.name).write(seconds=0.0)
    if any(not needs_data_stages(member.params, study.now) for member in waiting):
        require_data(study.root)
    total, at_work, lost = len(study.members), _AtWork(study), dict[str, str]()
    said, start = time.monotonic(), time.monotonic()
    if waiting:
        say(f"{total - len(waiting)} of {total} members are there already; {len(waiting)} to run, {jobs} at a time")
    with signals(at_work.stop):
        while waiting or at_work.running:
            while waiting and len(at_work.running) < jobs:
                at_work.begin(waiting.pop(0))
            for member, how_it_ended in at_work.ended():
                found = standing(study, [member])[member.name]
                if found.state == "missing":
                    found = replace(found, reason=how_it_ended)
                    lost[member.name] = how_it_ended
                left = time_left(study, standing(study, study.members), jobs)
                how = "done" if found.state == "done" else f"{found.state}: {found.reason}"
                say(f"{member.name}: {how}{left}")
            if at_work.running and time.monotonic() - said >= SAY:
                said = time.monotonic()
                names = "; ".join(f"{one.name}: {_last_line(study, one)}" for one in at_work.running)
                say(f"{(said - start) / 60:.0f} min: {names}")
            time.sleep(LOOK if at_work.running else 0)
    now = standing(study, study.members)
    return now | {name: replace(now[name], reason=why) for name, why in lost.items() if now[name].state == "missing"}


def require_data(root: Path) -> None:
    """Raise UserError unless DVC says that the workspace's images are as dvc.yaml and params.yaml want them."""
    for left in reversed(range(TRIES)):
        done = _quietly(root, "repro", "--dry", "--allow-missing", *DATA_STAGES)  # data/raw need not be there
        if not (left and done.returncode and is_busy(done.stderr)):
            break
        time.sleep(WAIT)
    if done.returncode:
        raise UserError(
            f"DVC cannot say whether this workspace's images are up to date: {reason_of(done.stderr)}. "
            f"`dvc status {' '.join(DATA_STAGES)}` shows what it meets"
        )
    if "up to date" not in done.stdout:
        raise UserError(
            "the study's members take the images of this workspace, which are not up to date: "
            f"`dvc repro {' '.join(DATA_STAGES)}` first"
        )


def is_busy(log: str) -> bool:
    """Whether a run ended because another process is at work, so that it may be tried again."""
    return any(words in log for words in BUSY)


def reason_of(log: str) -> str:
    """The line of a log that says why it ended: the last that begins with an error, else the last of all."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error:")] or [line for line in lines if "Error" in line]
    errors = errors or [line for line in lines if line.startswith("ERROR:")]
    return (errors or lines or ["it ended without a word"])[-1]


@dataclass
class _Job:
    member: Member
    process: subprocess.Popen
    slot: int
    said: IO[bytes]


class _AtWork:
    """The members that run now, each in a process of its own that goes on even where this one is killed."""

    def __init__(self, study: Study):
        self.study = study
        self.jobs: list[_Job] = []
        self.gpus = _gpus()

    @property
    def running(self) -> list[Member]:
        return [job.member for job in self.jobs]

    def begin(self, member: Member) -> None:
        slot = next(number for number in range(len(self.jobs) + 1) if number not in [job.slot for job in self.jobs])
        environment = dict(os.environ)
        if self.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self.gpus[slot % len(self.gpus)]
        command = [
            sys.executable,
            "-m",
            "exp_tools.cli",
            "study",
            str(self.study.file.resolve()),
            "--member",
            member.name,
        ]
        said = TemporaryFile()  # noqa: SIM115 (it is closed when the process is over)
        process = subprocess.Popen(
            command,
            cwd=self.study.root,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=said,
            start_new_session=True,
        )
        self.jobs.append(_Job(member, process, slot, said))

    def ended(self) -> list[tuple[Member, str]]:
        """The members whose process is over, and in words how it ended."""
        over = [job for job in self.jobs if job.process.poll() is not None]
        self.jobs = [job for job in self.jobs if job not in over]
        return [(job.member, _how_it_ended(job)) for job in over]

    def stop(self) -> None:
        for job in self.jobs:
            job.process.terminate()
        for job in self.jobs:
            job.process.wait()


def _how_it_ended(job: _Job) -> str:
    with job.said as file:
        file.seek(0)
        text = file.read().decode(errors="replace")
    why = f": {reason_of(text)}" if text.strip() else ""
    return f"its process ended with status {job.process.returncode}{why}"


class signals:
    """In the block SIGINT and SIGTERM raise Stopped; `stop` is called where it ends by that or by another error.

    Not by the handler itself: a signal comes in the middle of `Popen.wait`, whose lock is then held, and a handler that
    waited for the same process would wait for ever.
    """

    def __init__(self, stop: Callable[[], None]):
        self.stop = stop

    def __enter__(self) -> None:
        self.before = {number: signal.signal(number, self._caught) for number in (signal.SIGINT, signal.SIGTERM)}

    def __exit__(self, kind: object, *error: object) -> None:
        try:
            if kind is not None:
                for number in self.before:
                    signal.signal(number, signal.SIG_IGN)
                self.stop()
        finally:
            for number, handler in self.before.items():
                signal.signal(number, handler)

    def _caught(self, number: int, frame: object) -> None:
        for one in self.before:
            signal.signal(one, signal.SIG_IGN)
        raise Stopped("stopped; the same command goes on from here", number)


def _dvc(study: Study, member: Member, log: Path) -> int:
    """The exit status of the member's `dvc exp run`; a stop is passed on and waited for."""
    own = needs_data_stages(member.params, study.now)
    targets = ["evaluate"] if own else ["--single-item", *OWN_STAGES]
    process = start_dvc(study.root, member.name, [*member.words, *targets], log)
    with signals(lambda: stop_dvc(process)):
        return process.wait()


def start_dvc(root: Path, name: str, words: Sequence[str], log: Path) -> subprocess.Popen:
    """Start `dvc exp run --temp` of an experiment, as the first of a process group; its words go to the log."""
    with log.open("w", encoding="utf-8") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "dvc", "exp", "run", "--temp", "--name", name, *words],
            cwd=root,
            env=own_python_first(),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def stop_dvc(process: subprocess.Popen) -> None:
    """Ask DVC and all below it to stop, and wait: training saves its state, which outlives DVC."""
    _kill_group(process.pid, signal.SIGTERM)
    process.wait()
    until = time.monotonic() + SAVES
    while _kill_group(process.pid, 0) and time.monotonic() < until:
        time.sleep(0.2)


def _kill_group(group: int, number: int) -> bool:
    """Send a signal to a process group; whether there is one."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    return True


def _quietly(root: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dvc", *command], cwd=root, env=own_python_first(), capture_output=True, text=True
    )


def _gpus() -> Sequence[str]:
    """The GPUs that jobs divide among them, as CUDA_VISIBLE_DEVICES names them; empty with fewer than two."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is None:
        try:
            listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True).stdout
        except OSError:
            return ()
        given = ",".join(str(number) for number in range(listed.count("GPU ")))
    names = [name.strip() for name in given.split(",") if name.strip()]
    return names if len(names) > 1 else ()


def _last_line(study: Study, member: Member) -> str:
    try:
        text = Notes(study.root, study.name, member.name).log.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "begins"
    lines = [line.strip() for line in text.replace("\r", "\n").splitlines() if line.strip()]
    return lines[-1][:100] if lines else "begins"
