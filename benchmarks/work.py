"""What `make bench` does, case by case."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from benchmarks import data_cases, scoring_cases, serving_cases, start_cases, training_cases
from benchmarks.case import Case
from benchmarks.gpu_cases import gpu_cases
from benchmarks.growth import measure, memory_case
from benchmarks.processes import processes_case
from exp_tools.params import load_params

RESNET18 = {"backbone": "resnet18"}
RECIPES = (
    "reference",
    "lite0",
    "convnext_finetune",
    "soft_attention",
    "soft_attention_paper",
    "emas",
    "multimodal",
    "efficientnet_v2",
    "melanoma",
)
"""Recipes that train a network; those of probes are the case `features`."""
ROOT = Path(__file__).parents[1]

Work = Callable[[], Case | list[Case]]


@dataclass(frozen=True)
class Request:
    """The images to use, a folder for what is made on the way, how much of it, and how often."""

    files: list[Path]
    scratch: Path
    quick: bool
    repeats: int

    def some(self, quick: int, full: int) -> list[Path]:
        """The first files, fewer where it must be quick."""
        return self.files[: quick if self.quick else full]

    def bench(
        self, size: int, count: int, batch: int, device: str = "cpu", *, deterministic: bool = True
    ) -> training_cases.Bench:
        """`count` packed images of `size` pixels."""
        place = {"size": size, "count": count, "batch": batch, "device": torch.device(device)}
        return training_cases.make_bench(self.files, self.scratch, **place, deterministic=deterministic)

    def folder(self, files: list[Path]) -> Path:
        """A folder of links to some of the files."""
        folder = self.scratch / f"links-{len(files)}"
        folder.mkdir(exist_ok=True)
        for place, file in enumerate(files):
            (folder / f"{place}{file.suffix}").symlink_to(file.resolve())
        return folder


def cpu_work(request: Request) -> dict[str, Work]:
    """What is to be done on a processor, by the name of its case (or of its cases' beginning)."""
    params, quick = load_params(), request.quick
    repeats, scratch = request.repeats, request.scratch

    def train(recipe: str) -> Work:
        # Two steps at a time, so that both sides see the same moods of a machine, and more often.
        bench = partial(request.bench, 96 if quick else 128, 32, 16)
        training = partial(training_cases.recipe_training, ROOT, recipe, 16)
        return lambda: training_cases.train_case(bench(), training(), 3 * repeats, f"train_{recipe}")

    def epoch() -> Case:
        bench = request.bench(params.prepare.image_size, 128 if quick else 256, 32)
        knobs = params.model.soft_attention.model_dump()
        return training_cases.epoch_case(request.files, bench, "soft_attention", knobs, repeats=repeats)

    def epoch_emas() -> Case:
        bench = request.bench(224, 96, 16)
        knobs = params.model.emas.model_dump()
        return training_cases.epoch_case(request.files, bench, "emas", knobs, repeats=min(3, repeats), target=3)

    def compiled() -> Case:
        bench = request.bench(96 if quick else 128, 32, 16)
        training = training_cases.default_training(16, "timm", {"backbone": "resnet10t"}, compile=True)
        return training_cases.train_case(bench, training, 3 * repeats, "train_compiled")

    def evaluate() -> Case:
        bench = request.bench(224, 64 if quick else 128, 16)
        return training_cases.evaluate_case(bench, "timm", RESNET18, repeats)

    def features() -> Case:
        bench = request.bench(224, 128 if quick else 512, 16)
        return training_cases.features_case(bench, "tf_efficientnet_lite0", repeats)

    def predict_batch() -> Case:
        folder = request.folder(request.some(200, 600))
        return serving_cases.predict_batch_case(folder, scratch, params.prepare.image_size, repeats)

    def memory() -> list[Case]:
        points = measure((500, 1000 if quick else 2000), None, ("prepare", "split", "train"))
        return [memory_case(f"memory_{stage}", stage, points) for stage in ("prepare", "train")]

    return {
        "prepare": lambda: data_cases.prepare_case(request.some(400, 1000), scratch, repeats),
        "loader": lambda: data_cases.loader_case(request.files, scratch, repeats),
        "augment": lambda: data_cases.augment_case(request.files, scratch, repeats),
        **{f"train_{recipe}": train(recipe) for recipe in RECIPES},
        "train_compiled": compiled,
        "epoch_soft_attention": epoch,
        "epoch_emas": epoch_emas,
        "evaluate": evaluate,
        "features": features,
        "processes_2": lambda: processes_case(scratch, 128, repeats),
        "bootstrap": lambda: scoring_cases.bootstrap_case(repeats),
        "report_1500": lambda: scoring_cases.report_case(1500, 5, scratch, repeats),
        "report_10000": lambda: scoring_cases.report_case(10_000, 10, scratch, min(3, repeats)),
        "split": lambda: data_cases.split_case(repeats),
        "duplicates": lambda: data_cases.duplicates_case(request.some(400, 1000), 1 if quick else 3),
        "predict_one": lambda: serving_cases.predict_one_case(request.files[0], scratch, repeats),
        "api_overhead": lambda: serving_cases.api_overhead_case(request.files[0], scratch, repeats),
        "predict_batch": predict_batch,
        "onnx": lambda: serving_cases.export_cases(request.files, scratch, repeats),
        "help": lambda: start_cases.help_case(repeats),
        "import": lambda: start_cases.import_case(repeats),
        "stage_start": lambda: start_cases.stage_start_case(repeats),
        "repro_noop": lambda: start_cases.repro_noop_case(scratch, repeats),
        "memory": memory,
    }


def gpu_work(request: Request) -> dict[str, Work]:
    """What is to be done on a GPU, at 224 pixels."""

    def make(batch: int, deterministic: bool) -> training_cases.Bench:
        return request.bench(224, batch * (16 if request.quick else 64), batch, "cuda", deterministic=deterministic)

    return gpu_cases(make, request.repeats)
