"""`exp-tools doctor`: what it finds on machines and in projects made up for the purpose, and what it advises."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from helpers.project import ROOT

from exp_tools import doctor
from exp_tools.cli import main as cli
from exp_tools.project import find_project
from exp_tools.training.step_speed import Speed

GIB = 2**30


@pytest.fixture
def project(tmp_path, tmp_path_factory, monkeypatch):
    """A project with a pipeline of two stages, of which the first was run; no settings of this machine reach it."""
    for level in ("SYSTEM", "GLOBAL"):
        monkeypatch.setenv(f"DVC_{level}_CONFIG_DIR", str(tmp_path_factory.mktemp("settings")))
    monkeypatch.delenv("GIT_DIR", raising=False)
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    who = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    subprocess.run(["git", "-C", tmp_path, *who, "commit", "-q", "--allow-empty", "-m", "start"], check=True)
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").write_text('[cache]\n    type = "reflink,copy"\n')
    shutil.copy(ROOT / "params.yaml", tmp_path)
    set_param(tmp_path, "data", "source", "synthetic")
    set_param(tmp_path, "data", "dir", None)
    stages = {
        "download": {"cmd": "true", "outs": [{"data/raw": {"cache": False}}]},
        "train": {"cmd": "true", "outs": ["models/model.safetensors"], "metrics": [{"metrics/train.json": {}}]},
    }
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    (tmp_path / "dvc.lock").touch()
    (tmp_path / "data/raw").mkdir(parents=True)
    return tmp_path


def set_param(project: Path, section: str, key: str, value: object) -> None:
    params = yaml.safe_load((project / "params.yaml").read_text())
    params[section][key] = value
    (project / "params.yaml").write_text(yaml.safe_dump(params))


def machine(*, cuda=False, mps=False):
    """As much of torch as the checks ask."""
    gpus = [SimpleNamespace(name="H100", total_memory=80 * GIB)] * 2
    return SimpleNamespace(
        cuda=SimpleNamespace(
            is_available=lambda: cuda,
            device_count=lambda: len(gpus),
            get_device_properties=lambda index: gpus[index],
        ),
        backends=SimpleNamespace(mps=SimpleNamespace(is_available=lambda: mps)),
        version=SimpleNamespace(cuda="13.2"),
    )


def test_a_python_that_is_too_old_stops_the_pipeline():
    assert doctor.check_python((3, 10, 14)).status == "missing"
    assert doctor.check_python((3, 11, 0)).status == "ok"


def test_gpus_are_named_with_their_memory():
    assert doctor.check_gpu(machine(cuda=True)).detail == "H100 (80 GiB), H100 (80 GiB)"
    assert "Metal" in doctor.check_gpu(machine(mps=True)).detail


def test_a_gpu_that_torch_cannot_use_is_told_from_none(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    none = doctor.check_gpu(machine())
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    unusable = doctor.check_gpu(machine())
    assert none.status == unusable.status == "warn"
    assert "none" in none.detail
    assert "driver" in unusable.remedy


@pytest.mark.parametrize(
    ("device", "capable", "detail"),
    [
        ("cuda", True, "the GPU computes in it: train.precision auto takes bf16"),
        ("cuda", False, "not in this GPU: train.precision auto takes fp16"),
        ("mps", False, "not in this GPU: train.precision auto takes fp32"),
        ("cpu", True, "the CPU is fast in it: train.precision auto takes bf16, or fp32 where"),
        ("cpu", False, "neither AMX nor AMD's AVX-512 BF16 here: train.precision auto takes fp32"),
    ],
)
def test_bf16_is_reported_where_training_would_run(device, capable, detail):
    assert doctor.check_bf16(device, capable).detail.startswith(detail)


def tiny_model(project) -> None:
    set_param(project, "prepare", "image_size", 32)
    set_param(project, "model", "timm", {"backbone": "test_resnet", "drop_path": 0.0, "dropout": 0.0, "options": None})
    set_param(project, "model", "name", "timm")


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.sweep)])
def test_a_training_step_is_timed_in_both_precisions(project, monkeypatch, capsys, precision):
    tiny_model(project)
    set_param(project, "train", "precision", precision)
    before = {path: path.read_bytes() for path in project.rglob("*") if path.is_file()}
    monkeypatch.chdir(project)
    assert cli.main(["doctor", "--measure", "--json"]) in (0, 1)
    (check,) = [check for check in json.loads(capsys.readouterr().out) if check["name"] == "training speed"]
    assert check["detail"].startswith("timm, 32 pixels, batches of 16: fp32 ")
    assert ", bf16 " in check["detail"]
    assert f"train.precision {precision} takes {precision}" in check["detail"]
    assert {path: path.read_bytes() for path in project.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("rates", "used", "best"),
    [
        ({"fp32": 70.0, "bf16": 35.0}, "bf16", "fp32"),
        ({"fp32": 70.0, "bf16": 154.0}, "fp32", "bf16"),
        ({"fp32": 70.0, "bf16": 74.0}, "fp32", "fp32"),  # not worth a change
        ({"fp32": 70.0, "bf16": 35.0}, "fp32", "fp32"),
    ],
)
def test_only_a_clear_difference_is_advice(project, monkeypatch, rates, used, best):
    speed = Speed(rates, 16, used)
    assert speed.best == best
    monkeypatch.setattr("exp_tools.training.step_speed.measure", lambda params: speed)
    check = doctor.check_speed(project)
    assert (check.status == "warn") == (best != used) == (f"-S train.precision={best}" in check.remedy)


def test_the_speed_is_measured_on_request_only(project):
    assert "training speed" not in {check.name for check in doctor.diagnose(project)}


def test_wrong_parameters_are_no_crash_of_the_measurement(project):
    set_param(project, "model", "name", "timm")
    set_param(project, "model", "timm", {"backbone": "resnet9000", "drop_path": 0.0, "dropout": 0.0, "options": None})
    check = doctor.check_speed(project)
    assert check.status == "warn"
    assert "timm has no backbone 'resnet9000'" in check.detail


def test_torchvision_built_for_another_torch_stops_the_pipeline(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    check = doctor.check_torch(SimpleNamespace(__version__="2.15.0"))
    assert check.status == "missing"
    assert check.remedy == "make install"


@pytest.mark.parametrize(("free", "status"), [(GIB // 2, "missing"), (5 * GIB, "warn"), (50 * GIB, "ok")])
def test_free_disk(free, status):
    assert doctor.check_disk(free).status == status


def test_the_small_shared_memory_of_a_container_is_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(total=64 * 2**20))
    check = doctor.check_shared_memory(tmp_path)
    assert (check.status, "64 MiB" in check.detail) == ("warn", True)
    assert doctor.check_shared_memory(tmp_path / "absent").status == "ok"


def test_a_folder_that_is_no_repository(tmp_path, project, monkeypatch):
    assert doctor.check_git(project).status == "ok"
    shutil.rmtree(project / ".git")
    assert doctor.check_git(project).status == "missing"
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert doctor.check_git(project).detail == "not installed"


def test_dvc_remote_and_cache_type(project):
    check = doctor.check_dvc(project)
    assert check.status == "ok"
    assert check.detail.endswith("cache type reflink,copy, remote none")
    assert "dvc remote add" in check.remedy
    with (project / ".dvc/config").open("a") as file:
        file.write("[core]\n    remote = store\n")
    (project / ".dvc/config.local").write_text('[cache]\n    type = "hardlink,copy"\n')
    check = doctor.check_dvc(project)
    assert check.status == "warn"
    assert check.detail.endswith("cache type hardlink,copy, remote store")
    shutil.rmtree(project / ".dvc")
    assert doctor.check_dvc(project).status == "missing"


def test_a_wrong_parameter_is_named(project):
    assert doctor.check_params(project).status == "ok"
    set_param(project, "train", "epochs", 0)
    check = doctor.check_params(project)
    assert check.status == "missing"
    assert "train.epochs is 0" in check.detail
    assert doctor.check_data(project).status == "warn"


def test_the_folder_of_the_users_own_data(project):
    assert doctor.check_data(project).detail == "the embedded sample set"
    set_param(project, "data", "source", "ham10000")
    assert doctor.check_data(project).status == "missing"
    set_param(project, "data", "dir", "mine")
    assert "no folder" in doctor.check_data(project).detail
    (project / "mine").mkdir()
    assert "empty" in doctor.check_data(project).detail
    (project / "mine/HAM10000_metadata.csv").touch()
    assert doctor.check_data(project).status == "ok"


def test_a_pipeline_that_never_ran_says_what_to_run(project):
    (project / "dvc.lock").unlink()
    (check,) = doctor.check_pipeline(project)
    assert (check.status, check.remedy) == ("warn", "make repro")


def test_outputs_that_are_not_here_are_named_stage_by_stage(project):
    lock, download, train = doctor.check_pipeline(project)
    assert lock.status == "ok"
    assert (download.name, download.status) == ("stage download", "ok")
    assert (train.name, train.status) == ("stage train", "warn")
    assert train.detail == "not here: models/model.safetensors, metrics/train.json"
    assert train.remedy.startswith("dvc repro train")


def test_the_project_is_found_from_a_folder_inside_it(project, tmp_path_factory):
    assert find_project(project / "data/raw") == project
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    assert find_project(elsewhere) == elsewhere
    assert doctor.check_pipeline(elsewhere)[0].status == "missing"


def test_the_exit_status_is_1_only_when_the_pipeline_cannot_run(project, monkeypatch, capsys):
    monkeypatch.chdir(project)
    monkeypatch.setattr(doctor, "check_disk", lambda free: doctor.Check("disk", "ok", "enough"))
    assert cli.main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert text.endswith("The pipeline can run.\n")
    assert "-> dvc repro train" in text

    set_param(project, "train", "lr", "fast")
    assert cli.main(["doctor", "--json"]) == 1
    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)}
    assert checks["parameters"]["status"] == "missing"
    assert checks["Python"] == doctor.check_python(sys.version_info[:3])._asdict()
    assert {"PyTorch", "GPU", "bf16", "memory", "shared memory", "Git", "DVC", "stage train"} <= checks.keys()


def test_a_package_that_does_not_import_is_a_finding_not_a_crash(project, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    checks = {check.name: check for check in doctor.diagnose(project)}
    assert checks["PyTorch"].status == checks["GPU"].status == "missing"
    assert checks["PyTorch"].remedy == "make install"
    assert checks["Git"].status == "ok"
    assert "The pipeline cannot run yet: PyTorch, GPU, bf16." in doctor.report(list(checks.values()))
