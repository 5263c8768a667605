"""Training runs for tests of several processes: `torchrun --nproc-per-node 2 -m helpers.distributed FOLDER`.

Everything that happens a step or an epoch is on, but what differs from process to process: dropout, mixing, and the
statistics of BatchNorm, which rests.
"""

import contextlib
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import yaml

from exp_tools.errors import UserError, run_main
from exp_tools.models.registry import build_model
from exp_tools.params import parse_params
from exp_tools.training import trainer
from exp_tools.training.checkpoints import RunStore
from exp_tools.training.distributed import world_of
from exp_tools.training.loader import Setup, TrainingData
from helpers.project import ROOT

SHARED = {
    "epochs": 3,
    "batch_size": 8,
    "accumulate": 2,
    "lr": 0.01,
    "optimizer": "sgd",
    "patience": None,
    "sampler": "none",
    "class_weights": {"b": 5.0, "d": 0.2},
    "label_smoothing": 0.1,
    "clip_norm": 0.05,
    "ema": 0.8,
    "select_on": "loss",
}
CASES = {
    "no BatchNorm, frozen, then half of it learns": ("test_vit", {"frozen_epochs": 1, "unfreeze": 0.5}),
    "BatchNorm at rest": ("test_resnet", {"unfreeze": 0.0}),
}


class Killed(BaseException):
    """What stands for a kill."""


def run(folder: Path, case: str, store: RunStore | None = None) -> dict:
    """Train one of CASES on the images of `folder`: final weights and the scores of each epoch."""
    backbone, changes = CASES[case]
    params = parse_params(yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))).train
    params = params.model_copy(update=SHARED | changes)
    images = folder / "images.npy"
    count = len(np.load(images, mmap_mode="r"))
    rows = np.arange(count)
    data = TrainingData(images, rows % 4, rows, rows[:11], list("abcd"), [f"image {row}" for row in rows])
    torch.manual_seed(0)
    model = build_model("timm", {"backbone": backbone}, 4)
    history: list[dict] = []
    setup = Setup(torch.device("cpu"), "fp32", checkpoint_steps=1)
    trainer.fit(model, data, params, setup, store=store, on_epoch=lambda epoch, scores: history.append(scores))
    return {"weights": model.state_dict(), "history": history}


def main() -> None:
    """In each process: every case straight, and killed after its fifth step; then a fault in the second one alone."""
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    first = world_of()[0] == 0
    step = trainer.Trainer.step
    for case in CASES:
        straight = run(folder, case)

        def killed_after_five(self, *given, done=[]):  # noqa: B006
            done.append(step(self, *given))
            if len(done) == 6:
                raise Killed

        with RunStore(folder / "runs", case[:4], {}) if first else contextlib.nullcontext() as store:
            trainer.Trainer.step = killed_after_five
            try:
                run(folder, case, store)
            except Killed:
                trainer.Trainer.step = step
            else:
                raise AssertionError("nothing was killed")
            resumed = run(folder, case, store)
        if first:
            torch.save({"straight": straight, "resumed": resumed}, folder / f"{case}.pt")
    dist.barrier()
    (folder / "cases are done").touch()
    spoil = trainer.network_inputs

    def spoiled(*given):
        images, *more = spoil(*given)
        return (images if first else images * float("nan"), *more)

    trainer.network_inputs = spoiled
    run(folder, "BatchNorm at rest")
    raise UserError("the fault was not noticed")


if __name__ == "__main__":
    run_main(main)
