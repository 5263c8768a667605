"""The state of a study's members: done, failed, running or missing, from DVC's experiments and notes in `runs/`."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from filelock import FileLock, Timeout

from exp_tools.errors import UserError
from exp_tools.evaluation.compare.runs import IRRELEVANT, flat_params, predictions_are_older
from exp_tools.evaluation.made_with import LOCK, at_revision
from exp_tools.io import write_json
from exp_tools.params import PARAMS_FILE, parse_params
from exp_tools.project import PREDICTIONS, RUNS_FOLDER
from exp_tools.revisions import Version, experiments_called, read_files
from exp_tools.studies.plan import Member, Study

CODE_OF = ("train", "ood", "calibrate", "evaluate")
"""The stages whose code decides a member's predictions."""
State = Literal["done", "failed", "running", "missing"]


@dataclass(frozen=True)
class Standing:
    """Where a member stands.

    state : done, failed, running (in this or another process) or missing
    word : what DVC knows its experiment by, for `exp-tools compare`; "" unless done
    code : digest of the code that made it; "" unless done
    seconds : what its runs took so far, all together; 0 unknown
    reason : why it failed, in a line; of a missing one that was begun, how it ended
    """

    state: State
    word: str = ""
    code: str = ""
    seconds: float = 0.0
    reason: str = ""


class Notes:
    """What a study keeps about a member in `runs/studies/STUDY`: its lock, its log, its time and why it failed."""

    def __init__(self, root: Path, study: str, member: str):
        folder = root / RUNS_FOLDER / "studies" / study
        self.log, self._note = folder / f"{member}.log", folder / f"{member}.json"
        self.lock = FileLock(folder / f"{member}.lock")

    def held(self) -> bool:
        """Whether a process is at work on it."""
        if not Path(self.lock.lock_file).parent.is_dir():
            return False
        try:
            with self.lock.acquire(timeout=0):
                return False
        except Timeout:
            return True

    def read(self) -> dict[str, Any]:
        """`seconds` and `failed`, as far as they are known."""
        with suppress(OSError, ValueError):
            return json.loads(self._note.read_text(encoding="utf-8"))
        return {}

    def write(self, *, seconds: float, failed: str = "") -> None:
        """Add to the time that it took, and say why it failed ("": it did not)."""
        write_json(self._note, {"seconds": self.read().get("seconds", 0.0) + seconds, "failed": failed})


def standing(study: Study, members: Sequence[Member]) -> dict[str, Standing]:
    """Where each member stands, by name.

    Raises
    ------
    UserError : an experiment of a member's name ran with other parameters
    """
    found = experiments_called(study.root, [member.name for member in members])
    versions = [(name, version) for name, all_of_it in found.items() for version in all_of_it]
    wanted = [(version.commit, path) for _, version in versions for path in (PARAMS_FILE, LOCK)]
    texts = iter(read_files(study.root, wanted))
    facts = {(name, version): (next(texts), next(texts)) for name, version in versions}
    result = {}
    for member in members:
        notes = Notes(study.root, study.name, member.name)
        kept = notes.read()
        done = _experiment(member, [(one, *facts[member.name, one]) for one in found.get(member.name, [])])
        seconds = kept.get("seconds", 0.0)
        if done:
            result[member.name] = Standing("done", *done, seconds=seconds)
        elif notes.held():
            result[member.name] = Standing("running", seconds=seconds)
        elif reason := kept.get("failed"):
            result[member.name] = Standing("failed", seconds=seconds, reason=reason)
        else:
            result[member.name] = Standing("missing", seconds=seconds)
    return result


def time_left(study: Study, now: dict[str, Standing], jobs: int) -> str:
    """How long the rest will take, in words, from the members that ended; "" where none has or none is left."""
    hours = hours_left(study, now)
    return "" if not hours else f" (about {hours / jobs * 60:.0f} min left)"


def hours_left(study: Study, now: dict[str, Standing]) -> float | None:
    """Hours of all members that are not done, one after the other; None where none has ended yet.

    A member takes as long as the mean of its setting, or else of all that ended.
    """
    took = {name: one.seconds for name, one in now.items() if one.state == "done" and one.seconds}
    if not took:
        return None
    everywhere = sum(took.values()) / len(took)
    hours = 0.0
    for member in study.members:
        if now[member.name].state != "done":
            own = [took[one.name] for one in study.of_setting(member.setting) if one.name in took]
            hours += (sum(own) / len(own) if own else everywhere) / 3600
    return hours


def _experiment(member: Member, found: Sequence[tuple[Version, str | None, str | None]]) -> tuple[str, str] | None:
    """What to call the experiment with the member's predictions, and the digest of its code; None: there is none."""
    other = ""
    for version, params, lock in found:  # the newest first
        locked = yaml.safe_load(lock or "") or {}
        stages = locked.get("stages", {})
        outs = {out.get("path") for out in stages.get("evaluate", {}).get("outs", [])}
        if PREDICTIONS.as_posix() not in outs or predictions_are_older(lock):
            continue
        if difference := _difference(member, at_revision(params, lock)):
            other = other or difference
            continue
        code = {
            dep["path"]: dep["md5"]
            for stage in CODE_OF
            for dep in stages.get(stage, {}).get("deps", [])
            if dep["path"].startswith(("stages/", "exp_tools/"))
        }
        return (member.name if len(found) == 1 else version.commit), json.dumps(code, sort_keys=True)
    if other:
        raise UserError(
            f"there is an experiment {member.name} with other parameters ({other}). Rename the study file, or remove "
            f"the experiment: dvc exp remove {member.name}"
        )
    return None


def _difference(member: Member, content: Mapping[str, Any]) -> str:
    """The first parameter in which an experiment differs from the member, in words; "" where it has all of them."""
    try:
        ran = flat_params(parse_params(dict(content)).model_dump())
    except UserError:
        return "its parameters are of another version of this project"
    wanted = flat_params(member.params.model_dump())
    for key in sorted({*ran, *wanted}):
        if not key.startswith(IRRELEVANT) and ran.get(key, ...) != wanted.get(key, ...):
            return f"{key} is {ran.get(key)} there and {wanted.get(key)} in the study"
    return ""
