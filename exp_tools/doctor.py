"""What this machine and this project have, what is missing, and how to get it; without the network."""

import importlib.metadata
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from exp_tools.errors import UserError
from exp_tools.project import users_path
from exp_tools.system import cores
from exp_tools.taxonomy import is_drawn

INSTALL = "make install"
GIB = 2**30
AUTO_GPU = {"cuda": "fp16", "mps": "fp32"}
"""The choice of `train.precision: auto` on a GPU that does not compute in bf16."""


class Check(NamedTuple):
    """One finding: `missing` stops the pipeline, `warn` does not; both have a remedy."""

    name: str
    status: Literal["ok", "warn", "missing"]
    detail: str
    remedy: str = ""


def diagnose(root: Path, *, measure: bool = False) -> list[Check]:
    """Every finding about this machine and the project in `root`, in the order in which to fix them.

    `measure` adds the speed of training, which takes from seconds to a minute.
    """
    checks: list[tuple[str, Callable[[], Check | list[Check]]]] = [
        ("Python", lambda: check_python(sys.version_info[:3])),
        ("PyTorch", lambda: check_torch(_import_torch())),
        ("GPU", lambda: check_gpu(_import_torch())),
        ("bf16", lambda: check_bf16(*_fast_in_bf16())),
        ("processor", check_processor),
        ("memory", check_memory),
        ("disk", lambda: check_disk(shutil.disk_usage(root).free)),
        ("shared memory", lambda: check_shared_memory(Path("/dev/shm"))),
        ("Git", lambda: check_git(root)),
        ("DVC", lambda: check_dvc(root)),
        ("parameters", lambda: check_params(root)),
        ("data", lambda: check_data(root)),
        ("verdicts", lambda: check_verdicts(root)),
        ("pipeline", lambda: check_pipeline(root)),
    ]
    if measure:
        checks.append(("training speed", lambda: check_speed(root)))
    findings: list[Check] = []
    for name, check in checks:
        try:
            found = check()
        except ImportError as error:
            found = Check(name, "missing", f"cannot be checked: {error}", INSTALL)
        findings += found if isinstance(found, list) else [found]
    return findings


def report(checks: list[Check]) -> str:
    """The findings as aligned text, a remedy under each that has one, and a closing line."""
    width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        lines.append(f"{check.status:<7}  {check.name:<{width}}  {check.detail}")
        if check.remedy:
            lines.append(f"{'':<7}  {'':<{width}}  -> {check.remedy}")
    broken = [check.name for check in checks if check.status == "missing"]
    lines += ["", f"The pipeline cannot run yet: {', '.join(broken)}." if broken else "The pipeline can run."]
    return "\n".join(lines)


def check_python(version: tuple[int, ...]) -> Check:
    detail = f"{'.'.join(map(str, version))} ({sys.executable})"
    if version < (3, 11):
        return Check("Python", "missing", detail, "install Python 3.11 or newer, then make clean install")
    return Check("Python", "ok", detail)


def _import_torch() -> Any:
    """torch, with every way in which its import fails (a missing library is an OSError) as an ImportError."""
    try:
        import torch
    except Exception as error:
        raise ImportError(f"torch does not import: {error}") from error
    return torch


def check_torch(torch: Any) -> Check:
    """torchvision registers its operators on import, which fails where it was built for another torch."""
    try:
        import torchvision
    except Exception as error:
        detail = f"torch {torch.__version__}, but torchvision does not import with it: {error}"
        return Check("PyTorch", "missing", detail, INSTALL)
    return Check("PyTorch", "ok", f"torch {torch.__version__}, torchvision {torchvision.__version__}")


def check_gpu(torch: Any) -> Check:
    if torch.cuda.is_available():
        devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        return Check("GPU", "ok", ", ".join(f"{gpu.name} ({gpu.total_memory / GIB:.0f} GiB)" for gpu in devices))
    if torch.backends.mps.is_available():
        return Check("GPU", "ok", "Apple GPU (Metal)")
    if shutil.which("nvidia-smi"):
        remedy = f"nvidia-smi is here: update the driver to one for CUDA {torch.version.cuda}, or look for `+cpu` above"
        return Check("GPU", "warn", "torch cannot use the one that is here", remedy)
    return Check("GPU", "warn", "none: enough for the sample data", "for HAM10000 use a machine with one, or a subset")


def check_bf16(device: str, capable: bool) -> Check:
    """Whether the device (cpu, cuda, mps) that training would use is fast in bf16, as train.precision auto sees it."""
    if device != "cpu":
        fast = "the GPU computes in it" if capable else "not in this GPU"
        return Check("bf16", "ok", f"{fast}: train.precision auto takes {'bf16' if capable else AUTO_GPU[device]}")
    fast = "the CPU is fast in it" if capable else "neither AMX nor AMD's AVX-512 BF16 here"
    chosen = "bf16, or fp32 where a network has many depthwise convolutions" if capable else "fp32"
    remedy = "exp-tools doctor --measure times a training step in both"
    return Check("bf16", "ok", f"{fast}: train.precision auto takes {chosen}", remedy)


def _fast_in_bf16() -> tuple[str, bool]:
    torch = _import_torch()
    from exp_tools.devices import resolve_precision

    device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    return device, resolve_precision("auto", torch.device(device), lambda: 0.0) == "bf16"


def check_speed(root: Path) -> Check:
    """Time a training step of the chosen model in each precision, and recommend one."""
    from exp_tools.params import PARAMS_FILE, load_params
    from exp_tools.training.step_speed import measure

    try:
        params = load_params(root / PARAMS_FILE)
        speed = measure(params)
    except UserError as error:
        return Check("training speed", "warn", f"not measured: {error}")
    rates = ", ".join(
        f"{precision} {rate:.1f} images/s ({speed.batch / rate:.2f} s per step)"
        for precision, rate in speed.rates.items()
    )
    detail = (
        f"{params.model.name}, {params.prepare.image_size} pixels, batches of {speed.batch}: {rates}; "
        f"train.precision {params.train.precision} takes {speed.used}"
    )
    if speed.best == speed.used:
        return Check("training speed", "ok", detail)
    faster = speed.rates[speed.best] / speed.rates[speed.used]
    remedy = f"{faster:.1f} times as fast with -S train.precision={speed.best} (or in params.yaml)"
    return Check("training speed", "warn", detail, remedy)


def check_processor() -> Check:
    return Check("processor", "ok", f"{cores()} usable of {os.cpu_count()} cores, {platform.machine()}")


def check_memory() -> Check:
    import psutil

    memory = psutil.virtual_memory()
    detail = f"{memory.available / GIB:.1f} GiB free of {memory.total / GIB:.1f}"
    if memory.available < 3 * GIB:
        return Check("memory", "warn", detail, "the sample data need 3 GiB: close programs, or lower train.batch_size")
    return Check("memory", "ok", detail)


def check_disk(free: int) -> Check:
    """`free` bytes where the project lies: the sample data take megabytes, HAM10000 with its download store 10 GiB."""
    detail = f"{free / GIB:.1f} GiB free"
    if free < GIB:
        return Check("disk", "missing", detail, "make room: 1 GiB for the sample data, 10 GiB for HAM10000")
    if free < 10 * GIB:
        return Check("disk", "warn", detail, "enough for the sample data; make room for 10 GiB before HAM10000")
    return Check("disk", "ok", detail)


def check_shared_memory(folder: Path) -> Check:
    """Loader processes hand batches over in /dev/shm, which containers keep small (64 MiB in Docker)."""
    if not folder.is_dir():
        return Check("shared memory", "ok", f"no {folder} on this system: nothing limits loader processes")
    size = shutil.disk_usage(folder).total
    if size < GIB:
        remedy = "docker run --shm-size=2g, or machine.workers: 0"
        return Check(
            "shared memory", "warn", f"{folder} holds {size / 2**20:.0f} MiB: loader processes may die", remedy
        )
    return Check("shared memory", "ok", f"{folder} holds {size / GIB:.1f} GiB")


def check_git(root: Path) -> Check:
    if not shutil.which("git"):
        return Check("Git", "missing", "not installed", "install it: git-scm.com, Homebrew, or your system's packages")
    version = subprocess.run(["git", "--version"], capture_output=True, text=True).stdout.strip()
    inside = subprocess.run(
        ["git", "-C", str(root), "rev-parse", "--is-inside-work-tree"], capture_output=True, text=True
    )
    if inside.stdout.strip() != "true":
        remedy = "get the project by git clone, or here: git init && git add . && git commit -m start"
        return Check("Git", "missing", f"{version}, but {root} is not a repository; DVC needs one", remedy)
    if subprocess.run(["git", "-C", str(root), "rev-parse", "-q", "--verify", "HEAD"], capture_output=True).returncode:
        return Check("Git", "missing", f"{version}, but {root} has no commit; DVC needs one", "git commit -m start")
    return Check("Git", "ok", version)


def check_dvc(root: Path) -> Check:
    if not (root / ".dvc").is_dir():
        return Check("DVC", "missing", f"no .dvc folder in {root}", "run from a clone of the project")
    from dvc.config import Config

    config = Config(dvc_dir=str(root / ".dvc"))
    links = config["cache"].get("type") or ["reflink", "copy"]
    remote = config["core"].get("remote")
    detail = f"{importlib.metadata.version('dvc')}, cache type {','.join(links)}, remote {remote or 'none'}"
    if "hardlink" in links:
        remedy = "with data.dir set, your original images become read-only: dvc config --local cache.type reflink,copy"
        return Check("DVC", "warn", detail, remedy)
    return Check(
        "DVC", "ok", detail, "" if remote else "only dvc push and pull want one: dvc remote add --local -d NAME URL"
    )


def check_params(root: Path) -> Check:
    from exp_tools.params import PARAMS_FILE, load_params

    try:
        params = load_params(root / PARAMS_FILE)
    except UserError as error:
        return Check(
            "parameters", "missing", str(error), f"fix {PARAMS_FILE}; git diff {PARAMS_FILE} shows what was changed"
        )
    return Check("parameters", "ok", f"task {params.task}, data {params.data.source}, model {params.model.name}")


def check_data(root: Path) -> Check:
    from exp_tools.params import PARAMS_FILE, load_params

    try:
        data = load_params(root / PARAMS_FILE).data
    except UserError:
        return Check("data", "warn", "unknown while the parameters are wrong")
    if data.dir is None:
        if is_drawn(data.source):
            return Check("data", "ok", "the embedded sample set")
        remedy = "unpack a copy and name its folder: -S data.dir=FOLDER, or in params.yaml"
        return Check("data", "missing", f"data.source is {data.source}, and data.dir names no folder", remedy)
    folder = users_path(data.dir, root)
    if not folder.is_dir():
        remedy = "set data.dir to the folder of your unpacked copy (relative to the project's root), or to null"
        return Check("data", "missing", f"data.dir: no folder {folder}", remedy)
    if not any(folder.iterdir()):
        return Check("data", "missing", f"data.dir: the folder {folder} is empty", "unpack the data set there")
    from exp_tools.data_check import LINK_AGAIN, changes_of_data, dead_links, strays

    if dead := dead_links(root):
        said, _, remedy = dead[0].partition(". ")
        return Check("data", "missing", said, remedy)
    if lost := strays(root):
        said = f"{lost[0]} is not the pipeline's, and DVC will delete it"
        return Check("data", "warn", said, f"mv {shlex.quote(str(lost[0]))} .")
    try:
        added, gone = changes_of_data(root)
    except UserError as error:
        return Check("data", "warn", f"{data.source} from {folder}: {error}")
    if added or gone:
        detail = f"{folder} has {len(added):,} new files since `download`, and {len(gone):,} less; DVC cannot see that"
        return Check("data", "warn", detail, LINK_AGAIN)
    return Check("data", "ok", f"{data.source} from {folder}")


def check_verdicts(root: Path) -> Check:
    from exp_tools.data_check import verdict_faults, verdicts_on_labels

    if faults := verdict_faults(root):
        return Check("verdicts", "missing", faults[0], "exp-tools data check lists all faults of verdicts/")
    return Check("verdicts", "ok", verdicts_on_labels(root))


def check_pipeline(root: Path) -> list[Check]:
    """The stages of dvc.yaml and whether their outputs exist (whether they are current: `dvc status`)."""
    import yaml

    if not (root / "dvc.yaml").is_file():
        return [Check("pipeline", "missing", f"no dvc.yaml in {root} or above", "run from a clone of the project")]
    stages = yaml.safe_load((root / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    if not (root / "dvc.lock").is_file():
        return [Check("pipeline", "warn", f"{len(stages)} stages, never run (no dvc.lock)", "make repro")]
    checks = [Check("pipeline", "ok", f"{len(stages)} stages, the last run is recorded in dvc.lock")]
    for name, stage in stages.items():
        absent = [out for out in _outs(stage) if not (root / out).exists()]
        if absent:
            remedy = f"dvc repro {name}, or dvc pull where a remote holds it"
            checks.append(Check(f"stage {name}", "warn", f"not here: {_some(absent)}", remedy))
        else:
            checks.append(Check(f"stage {name}", "ok", f"here: {_some(_outs(stage))}"))
    return checks


def _some(paths: list[str]) -> str:
    return ", ".join(paths[:3]) + (f" and {len(paths) - 3} more" if paths[3:] else "")


def _outs(stage: dict[str, Any]) -> list[str]:
    """Paths that a stage writes; an entry is a path, or a path with its options."""
    entries = [entry for kind in ("outs", "metrics", "plots") for entry in stage.get(kind, [])]
    return [path for entry in entries for path in ([entry] if isinstance(entry, str) else entry)]
