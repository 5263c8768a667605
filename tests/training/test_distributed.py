"""Several processes compute what one does, and see every image once."""

import contextlib
import copy
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from helpers import distributed as together
from helpers.project import ROOT, Project, merge
from safetensors.numpy import load_file

from exp_tools.data.inputs.dataset import PADDING, EpochOrder, PackedImages
from exp_tools.models.registry import build_model
from exp_tools.training.distributed import has_unused_parameters

TRANSFORMER = {  # no BatchNorm: its statistics are a process's own
    "model": {"soft_attention": {"backbone": "test_vit", "dropout": 0.0}},
    "prepare": {"image_size": 160},
    "train": {
        "epochs": 2,
        "batch_size": 16,
        "optimizer": "sgd",
        "lr": 0.01,
        "class_weights": "balanced",
        "sampler": "none",
        "precision": "fp32",
        "augment": {"preset": "medium"},
    },
}


@pytest.fixture(scope="module")
def project(ran_project, tmp_path_factory) -> Project:
    project = ran_project.copy(tmp_path_factory.mktemp("several") / "project")
    change(project, TRANSFORMER)
    project.run("dvc", "repro", "split")
    return project


def change(project: Project, overrides: dict) -> None:
    path = project.folder / "params.yaml"
    content = yaml.safe_load(path.read_text())
    merge(content, copy.deepcopy(overrides))
    path.write_text(yaml.safe_dump(content))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_two_processes_are_one_at_the_double_batch(project):
    project.run(sys.executable, "-m", "stages.train")
    alone = load_file(project.folder / "models/network.safetensors")
    losses = curve(project, "train/loss"), curve(project, "val/loss")

    change(project, {"machine": {"processes": 2}})
    done = project.run(sys.executable, "-m", "stages.train")
    assert "on 2 x cpu" in done.stdout
    assert done.stdout.count("best of 2 epochs") == 1
    together = load_file(project.folder / "models/network.safetensors")
    assert alone.keys() == together.keys()
    for name, tensor in alone.items():
        np.testing.assert_allclose(together[name], tensor, rtol=2e-3, atol=2e-5, err_msg=name)
    np.testing.assert_allclose(curve(project, "train/loss"), losses[0], rtol=1e-4)
    np.testing.assert_allclose(curve(project, "val/loss"), losses[1], rtol=1e-4)


@pytest.mark.sweep
def test_two_nodes_of_a_process_each_give_the_bytes_of_two_processes(project):
    outs = ("models/network.safetensors", "metrics/train/**/*")
    change(project, {"machine": {"processes": 2}})
    project.run(sys.executable, "-m", "stages.train")
    two = project.bytes_of(*outs)
    change(project, {"machine": {"processes": 1}})
    port = free_port()
    agents = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"),
                *("--node-rank", str(rank), "--master-addr", "127.0.0.1", "--master-port", str(port)),
                *("-m", "stages.train"),
            ],
            cwd=project.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in (0, 1)
    ]
    outputs = [agent.communicate(timeout=300)[0] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], "\n".join(outputs)
    assert project.bytes_of(*outs) == two


def curve(project: Project, name: str) -> list[float]:
    lines = (project.folder / f"metrics/train/plots/metrics/{name}.tsv").read_text().splitlines()
    return [float(line.split("\t")[-1]) for line in lines[1:]]


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The folder in which two processes ran what `together` runs, and how they ended."""
    folder = tmp_path_factory.mktemp("together")
    generator = np.random.default_rng(0)
    np.save(folder / "images.npy", generator.integers(0, 256, (45, 32, 32, 3), dtype=np.uint8))
    command = [
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "helpers.distributed",
        str(folder),
    ]
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (folder / "cases are done").exists(), done.stderr
    return folder, done


@pytest.mark.parametrize("case", together.CASES)
def test_accumulation_averages_phases_and_limits_are_those_of_one_process(two_processes, case):
    folder, _ = two_processes
    AcceleratorState._reset_state(reset_partial_state=True)
    alone = together.run(folder, case)
    two = torch.load(folder / f"{case}.pt")["straight"]
    for name, tensor in alone["weights"].items():
        torch.testing.assert_close(two["weights"][name], tensor, rtol=1e-4, atol=1e-6, msg=name)
    for one, other in zip(alone["history"], two["history"], strict=True):
        assert other == pytest.approx(one, rel=1e-4)


@pytest.mark.parametrize("case", together.CASES)
def test_two_processes_that_were_killed_end_with_the_same_numbers(two_processes, case):
    folder, _ = two_processes
    found = torch.load(folder / f"{case}.pt")
    straight, resumed = found["straight"], found["resumed"]
    assert resumed["history"] == straight["history"]
    assert all(torch.equal(resumed["weights"][name], tensor) for name, tensor in straight["weights"].items())


def test_a_fault_in_one_of_two_processes_ends_both(two_processes):
    _, done = two_processes
    assert done.returncode != 0
    assert "NaN or infinite (epoch 1, step 1; batch: image " in done.stderr


def test_sigterm_to_all_processes_of_a_run_saves_its_state(project):
    """As a cluster does it: launcher, processes and loaders get the signal, and then the launcher repeats it."""
    states = set((project.folder / "runs").glob("*/state.pt"))
    change(project, {"machine": {"processes": 2, "workers": 1}, "train": {"epochs": 500, "lr": 0.001}})
    with subprocess.Popen(
        [sys.executable, "-m", "stages.train"],
        cwd=project.folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as training:
        while training.poll() is None and set((project.folder / "runs").glob("*/state.pt")) == states:
            time.sleep(0.1)
        launcher = psutil.Process(training.pid)
        family = [launcher, *launcher.children(recursive=True)]
        assert len(family) >= 5
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
        errors = training.communicate(timeout=120)[1]
    assert training.returncode
    assert "the state is saved" in errors


@pytest.mark.parametrize("world", [2, 3])
def test_shares_make_up_the_batches_of_one(world):
    index = np.arange(100, 137)
    whole = EpochOrder(index, 8, seed=3)
    shares = [EpochOrder(index, 8, seed=3, rank=rank, world=world) for rank in range(world)]
    for order in (whole, *shares):
        order.set_epoch(5)
    for batch, *parts in zip(whole, *shares, strict=True):
        together = [key for part in parts for key in part if key.index != PADDING]
        assert sorted(together) == sorted(batch)
        assert all(parts)


def test_padding_is_an_empty_image_without_a_label(packed):
    path, labels = packed
    batch = PackedImages(path, labels).__getitems__([(1, 0, PADDING), (1, 1, 3)])
    assert batch.labels.tolist() == [PADDING, labels[3]]
    assert not batch.images[0].any()
    assert np.array_equal(batch.images[1], np.load(path)[3])


def test_an_epoch_can_begin_in_its_middle():
    order = EpochOrder(np.arange(30), 4, seed=1)
    order.set_epoch(2)
    whole = list(order)
    order.set_epoch(2, first=3)
    assert list(order) == whole[3:]


class Idle(torch.nn.Module):
    """A network with a layer that nothing passes through."""

    def __init__(self):
        super().__init__()
        self.used, self.idle = torch.nn.Conv2d(3, 2, 1), torch.nn.Conv2d(3, 2, 1)

    def forward(self, images):
        return self.used(images).mean((2, 3))


def test_a_parameter_without_part_in_the_logits_is_found():
    assert has_unused_parameters(Idle(), 16)
    assert not has_unused_parameters(Idle().used, 16)


@pytest.mark.parametrize("name", ["soft_attention", "emas", "efficientnet_v2", "multimodal", "timm"])
def test_all_parameters_of_the_architectures_are_used(name):
    knobs = {"sexes": 2, "localizations": 3} if name == "multimodal" else {}
    network = build_model(
        name, knobs | ({"backbone": "test_resnet"} if name not in ("emas", "efficientnet_v2") else {}), 4
    )
    before = [parameter.requires_grad for parameter in network.parameters()]
    assert not has_unused_parameters(network, 64)
    assert [parameter.requires_grad for parameter in network.parameters()] == before
