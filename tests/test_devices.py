"""Threads, algorithms and the place of images follow from the machine's facts and the parameters."""

import pytest
import torch

from exp_tools import devices, doctor, system
from exp_tools.devices import augments_on_device, prepare_machine
from exp_tools.errors import UserError

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def as_before():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.benchmark = False
    system.cores.cache_clear()


@pytest.fixture
def gpus(monkeypatch):
    """Pretend to have some CUDA GPUs."""

    def have(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return have


def test_a_containers_quota_limits_cores_and_threads(monkeypatch, params):
    system.cores.cache_clear()
    monkeypatch.setattr("joblib.externals.loky.backend.context._cpu_count_cgroup", lambda of: 1)
    machine = params.machine.model_copy(update={"threads": "auto", "device": "cpu"})
    prepare_machine(machine)
    assert system.cores() == torch.get_num_threads() == system.io_processes(machine) == 1
    assert doctor.check_processor().detail.startswith("1 usable of ")


def test_deterministic_algorithms_are_a_choice(params):
    machine = params.machine.model_copy(update={"device": "cpu"})
    prepare_machine(machine)
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.utils.deterministic.fill_uninitialized_memory
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark) == ("highest", False)
    prepare_machine(machine, deterministic=False)
    assert not torch.are_deterministic_algorithms_enabled()
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark) == ("high", True)


def test_more_processes_than_gpus_are_refused_in_one_line(gpus, monkeypatch, params):
    gpus(2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(UserError) as caught:
        prepare_machine(params.machine)
    assert "3 training processes on this host, which has 2 GPU(s)" in str(caught.value)
    assert "\n" not in str(caught.value)
    prepare_machine(params.machine.model_copy(update={"device": "cpu"}))  # the remedy
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert prepare_machine(params.machine) == torch.device("cuda", 1)


def test_images_lie_on_a_gpu_that_has_three_times_the_room(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (3_000, 10**12))
    assert augments_on_device("auto", GPU, 1_000)
    assert not augments_on_device("auto", GPU, 1_001)
    assert augments_on_device("gpu", GPU, 1_001)
    assert not augments_on_device("cpu", GPU, 1)
    assert not augments_on_device("auto", CPU, 1)
    with pytest.raises(
        UserError, match=r"machine\.augment_on is gpu, which needs a CUDA GPU, and training runs on mps"
    ):
        augments_on_device("gpu", torch.device("mps"), 1)


def test_several_processes_share_the_cores(monkeypatch, params):
    monkeypatch.setattr(devices, "cores", lambda: 4)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    prepare_machine(params.machine.model_copy(update={"threads": "auto", "device": "cpu"}))
    assert torch.get_num_threads() == 2
