"""The versions of the project that can be shown: the workspace, its branches, and DVC's experiments."""

import re
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import yaml

from exp_tools.errors import UserError, did_you_mean
from exp_tools.io import atomic_write
from exp_tools.project import MODEL, SPLITS

EXPERIMENT = re.compile(r"refs/exps/(?P<head>[0-9a-f]{2})/(?P<tail>[0-9a-f]{38})/(?P<name>.+)")
BRANCH = "refs/heads/"


@dataclass(frozen=True)
class Version:
    """One state of the project.

    kind : workspace, branch or experiment
    name : of the branch or experiment
    commit : 40 hex digits; "" for the workspace
    base : an experiment's: the commit that it started from
    created : when it was committed; None for the workspace
    """

    kind: str
    name: str
    commit: str = ""
    base: str = ""
    created: datetime | None = None

    @property
    def label(self) -> str:
        """The label in a list."""
        if self == RELEASED_VERSION:
            return "released with this project (trained on photographs)"
        return "workspace (files as they are now)" if not self.commit else f"{self.name} ({self.kind})"


WORKSPACE = Version("workspace", "workspace")
RELEASED_VERSION = Version("released", "released")
"""The model in `project.RELEASED`, which has no experiment."""


def list_versions(root: Path) -> list[Version]:
    """The workspace, then branches, then experiments, each with the newest first. Outside Git: only the workspace.

    Two experiments of one name (on different commits) are distinguished by the beginning of their commits.
    """
    form = "%(objectname)\t%(committerdate:unix)\t%(refname)"
    done = _git(root, "for-each-ref", "--sort=-committerdate", f"--format={form}", "refs/heads", "refs/exps")
    branches, experiments = [], []
    for line in (done.stdout.decode() if done.returncode == 0 else "").splitlines():
        commit, seconds, ref = line.split("\t")
        created = datetime.fromtimestamp(int(seconds), UTC)
        if ref.startswith(BRANCH):
            branches.append(Version("branch", ref.removeprefix(BRANCH), commit, created=created))
        elif found := EXPERIMENT.fullmatch(ref):
            base = found["head"] + found["tail"]
            experiments.append(Version("experiment", found["name"], commit, base, created))
    names = [version.name for version in experiments]
    experiments = [
        Version(one.kind, f"{one.name} {one.commit[:7]}", one.commit, one.base, one.created)
        if names.count(one.name) > 1
        else one
        for one in experiments
    ]
    return [WORKSPACE, *branches, *experiments]


def experiments_called(root: Path, names: Sequence[str]) -> dict[str, list[Version]]:
    """The experiments of each of some names, the newest first; several where they began at several commits."""
    done = _git(root, "for-each-ref", "--sort=-committerdate", "--format=%(objectname)\t%(refname)", "refs/exps")
    found: dict[str, list[Version]] = {}
    for line in (done.stdout.decode() if done.returncode == 0 else "").splitlines():
        commit, ref = line.split("\t")
        if (match := EXPERIMENT.fullmatch(ref)) and match["name"] in names:
            one = Version("experiment", match["name"], commit, match["head"] + match["tail"])
            found.setdefault(match["name"], []).append(one)
    return found


def find_version(root: Path, word: str) -> Version:
    """The version that a person names: `workspace`, an experiment, branch, tag or commit; else UserError."""
    if word == WORKSPACE.name:
        return WORKSPACE
    versions = list_versions(root)
    found = next((one for one in versions if word in (one.name, one.commit)), None)
    if found is not None:
        return found
    commit = git_text(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{word}^{{commit}}")
    if commit:
        return Version("commit", word, commit)
    hint = did_you_mean(word, [one.name for one in versions])
    raise UserError(f"{word!r} is not an experiment, branch, tag or commit of {root}{hint}")


def read_files(root: Path, wanted: Sequence[tuple[str, str | Path]]) -> list[str | None]:
    """Texts of files in Git, many in one call.

    Parameters
    ----------
    root : the project's folder
    wanted : (commit, path) pairs; commit "" reads the file as it is now

    Returns
    -------
    a text for each pair, None where the file is not there
    """
    texts: list[str | None] = [None] * len(wanted)
    committed = [place for place, (commit, _) in enumerate(wanted) if commit]
    for place, (commit, path) in enumerate(wanted):
        if not commit and (root / path).is_file():
            texts[place] = (root / path).read_text(encoding="utf-8")
    if not committed:
        return texts
    names = "".join(f"{wanted[place][0]}:./{Path(wanted[place][1]).as_posix()}\n" for place in committed)
    done = _git(root, "cat-file", "--batch", given=names.encode())
    content, start = done.stdout, 0
    for place in committed:
        end = content.index(b"\n", start)
        header = content[start:end].rsplit(b" ", 2)
        start = end + 1
        if len(header) == 3 and header[1] == b"blob":
            size = int(header[2])
            texts[place] = content[start : start + size].decode("utf-8")
            start += size + 1
    return texts


def count_scored(root: Path) -> int:
    """How many models were scored on the test split that the workspace has, in all commits and experiments here.

    Two runs are of the same split where dvc.lock has the same hash of splits.csv. 0 outside Git, or where nothing was
    evaluated.
    """
    listed = git_text(root, "log", "--all", "--format=%H", "--", "dvc.lock") or ""
    locks = read_files(root, [("", "dvc.lock"), *((commit, "dvc.lock") for commit in listed.split())])
    scored = [_scored(lock) for lock in locks if lock]
    return len({model for split, model in scored if split and split == scored[0][0]}) if scored else 0


def _scored(lock: str) -> tuple[str | None, str | None]:
    """Hashes of splits.csv and of the model that a dvc.lock says were evaluated."""
    content = yaml.load(lock, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)) or {}
    stage = content.get("stages", {}).get("evaluate", {})
    known = {dep["path"]: dep.get("md5") for dep in stage.get("deps", [])}
    return known.get(SPLITS.as_posix()), known.get(MODEL.as_posix())


def fetch_bytes(root: Path, version: Version, path: str | Path) -> bytes:
    """A file that DVC keeps, as it was in a version; from the cache or the default remote.

    Raises UserError where it is in neither.
    """
    if not version.commit:
        if not (root / path).is_file():
            raise UserError(
                f"{path} is not here; make it with `dvc repro`, or fetch it with `dvc pull` where a remote holds it"
            )
        return (root / path).read_bytes()
    try:
        return _dvc_files(root, version).read_bytes(Path(path).as_posix())
    except Exception as error:  # each storage behind DVC has errors of its own
        raise _gone(path, version) from error


def fetch_model(root: Path, version: Version, path: str | Path, cache: Path) -> Path:
    """A version's model as a file: the workspace's own, or a copy in `cache` whose name is the model's hash.

    Raises UserError where it is not available.
    """
    if not version.commit:
        return root / path
    try:
        files = _dvc_files(root, version)
        facts = files.info(Path(path).as_posix())
        digest = facts.get("md5") or facts["dvc_info"]["md5"]
        kept = cache / f"{digest}{Path(path).suffix}"
        if not kept.is_file():
            with atomic_write(kept) as temporary:
                files.get_file(Path(path).as_posix(), str(temporary))
    except Exception as error:
        raise _gone(path, version) from error
    return kept


def _dvc_files(root: Path, version: Version):
    from dvc.api import DVCFileSystem

    return DVCFileSystem(str(root), rev=version.commit)


def _gone(path: str | Path, version: Version) -> UserError:
    how = f"`dvc exp pull origin {version.name}`" if version.kind == "experiment" else "`dvc pull --all-branches`"
    return UserError(f"{path} of {version.label} is neither in DVC's cache nor in its remote; fetch it with {how}")


def _git(root: Path, *command: str, given: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["git", "-C", str(root), *command], input=given, capture_output=True, check=False)


def git_text(root: Path, *command: str) -> str | None:
    """The output of a Git command in the project's folder; None where it fails."""
    done = _git(root, *command)
    return done.stdout.decode().rstrip("\n") if done.returncode == 0 else None


def read_at_revision(word: str, root: Path, path: str | Path) -> str | None:
    """A file that Git or DVC keeps as it was in a version; None where it is not there or not at hand."""
    import dvc.api
    from dvc.exceptions import DvcException, FileMissingError, PathMissingError
    from dvc.scm import RevError, SCMError

    try:
        return dvc.api.read(Path(path).as_posix(), repo=str(root), rev=word, encoding="utf-8")
    except (PathMissingError, FileMissingError):
        return None
    except RevError as error:
        hint = did_you_mean(word, _revision_names(root))
        raise UserError(
            f"{word!r} is not a file, experiment, branch, tag or commit of {root}{hint}. `dvc exp list "
            "--all-commits` and `git branch` name what there is; `workspace` is the folder as it is now"
        ) from error
    except SCMError as error:
        raise UserError(
            f"{root} is no Git repository, so it has no version {word!r}; name prediction tables by their paths"
        ) from error
    except DvcException as error:
        raise UserError(f"{path} of {word} cannot be read: {error}") from error


def _revision_names(root: Path) -> list[str]:
    """Names of the project's experiments, branches and tags."""
    from dvc.repo import Repo
    from dvc.repo.experiments.utils import exp_refs

    with suppress(Exception), Repo(str(root)) as repo:  # only for a hint: no fault here is worth a word
        return [
            WORKSPACE.name,
            *repo.scm.list_branches(),
            *repo.scm.list_tags(),
            *(ref.name for ref in exp_refs(repo.scm)),
        ]
    return [WORKSPACE.name]
