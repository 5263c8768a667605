"""Training on one process against several on the same cores.

    python -m benchmarks.processes                                one on all cores against two, three batch sizes
    python -m benchmarks.processes --processes 4 --batches 256

The same network, ResNet-18 at 64 pixels, and the same number of images per step on all processes together.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.case import Case, of_pairs
from benchmarks.report import print_cases
from benchmarks.start_cases import ROOT
from exp_tools.devices import prepare_machine, resolve_precision
from exp_tools.models.registry import build_model
from exp_tools.params import load_params
from exp_tools.system import cores
from exp_tools.training.distributed import wrap
from exp_tools.training.interrupts import StopRequest
from exp_tools.training.loader import Setup, TrainingData, groups
from exp_tools.training.trainer import Trainer

SIZE, STEPS, BATCHES = 64, 4, (32, 64, 128)


def processes_case(scratch: Path, batch: int, repeats: int, processes: int = 2) -> Case:
    """`processes` processes, each with its share of the cores, against one with all of them."""
    images = scratch / f"processes-{batch}.npy"
    np.save(images, np.random.default_rng(0).integers(0, 256, (batch * STEPS, SIZE, SIZE, 3), dtype=np.uint8))
    pairs = [(time_of(images, batch, processes), time_of(images, batch, 1)) for _ in range(repeats)]
    threads = max(1, cores() // processes)
    return of_pairs(
        f"processes_{processes}",
        "images/s",
        batch * STEPS,
        pairs,
        against=f"{processes} processes x {threads} thread(s) against 1 x {cores()}, ResNet-18 at 64 px, batch {batch}",
        target=0.9,
    )


def time_of(images: Path, batch: int, processes: int) -> float:
    """Seconds for an epoch, not counting the start of the processes and a first epoch."""
    launcher = (
        [] if processes == 1 else ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
    )
    command = [sys.executable, "-m", *launcher, "benchmarks.processes", "--work", str(images), "--batches", str(batch)]
    alone = {"OMP_NUM_THREADS": str(max(1, cores() // processes))}
    done = subprocess.run(command, cwd=ROOT, env=os.environ | alone, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return float(json.loads(done.stdout.splitlines()[-1])["seconds"])


def work(images: Path, batch: int) -> None:
    """Train an epoch to warm up and one to measure, in this process of perhaps several; the first one prints."""
    params = load_params()
    device = prepare_machine(params.machine)
    rows = np.arange(batch * STEPS)
    data = TrainingData(images, rows % 7, rows, rows[:7], list("abcdefg"), [str(row) for row in rows])
    changes = {"batch_size": batch, "epochs": 100, "schedule": "constant", "sampler": "none"}
    torch.manual_seed(0)
    model = build_model("timm", {"backbone": "resnet18"}, 7)
    setup = Setup(device, resolve_precision("auto", device, lambda: 0.0))  # no depthwise convolution
    trainer = Trainer(model, data, params.train.model_copy(update=changes), setup, None, StopRequest(), print)
    trainer.runner = wrap(trainer.network, trainer.team, trainer.device, compiled=False, size=trainer.image_size)
    trainer.network.train()
    for epoch in (1, 2):
        start = time.perf_counter()
        trainer.order.set_epoch(epoch)
        trainer.progress.step = 0
        for group in groups(trainer.loader, 1):
            trainer.step(epoch, group)
    trainer.team.add(0.0)  # waits for the others
    if trainer.team.is_first:
        print(json.dumps({"seconds": time.perf_counter() - start}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES, help="images per step, of all processes")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.work, arguments.batches[0])
        return
    with tempfile.TemporaryDirectory() as folder:
        cases = [
            processes_case(Path(folder), batch, arguments.repeats, arguments.processes) for batch in arguments.batches
        ]
    print_cases(cases)


if __name__ == "__main__":
    main()
