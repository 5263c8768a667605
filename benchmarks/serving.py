"""What the use of a model costs beside its forward pass, and what an export gains: ratios, both sides in this run.

    python -m benchmarks.serving                     on drawn images
    python -m benchmarks.serving --images FOLDER     on the JPEGs below a folder

Weights are random: they cost as much as trained ones. Rival and case take turns; the ratio is the median over pairs.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.run import Case, compare, print_cases
from exp_tools.data.drawing.sample import write_sample
from exp_tools.data.images import find_images
from exp_tools.data.parallel import cores
from exp_tools.models.artifact import ModelFacts, save_model
from exp_tools.models.registry import build_model
from exp_tools.serving.batch import predict_batch
from exp_tools.serving.export import add_facts, export_onnx
from exp_tools.serving.predictor import Predictor
from exp_tools.serving.quantise import Examples, write_int8
from exp_tools.serving.worklist import Worklist, worklist
from exp_tools.taxonomy import DIAGNOSES

CALLS = 10


def resnet18(path: Path, size: int) -> Predictor:
    """A ResNet-18 for squares of `size` pixels, with random weights."""
    torch.manual_seed(0)
    knobs = {"backbone": "resnet18", "dropout": 0.0}
    network = build_model("timm", knobs, len(DIAGNOSES))
    facts = ModelFacts(
        architecture="timm",
        knobs=knobs,
        task="diagnosis",
        classes=list(DIAGNOSES),
        image_size=size,
        resize="squash",
        touch_up={},
        pixel_mean=list(network.pixel_mean),
        pixel_std=list(network.pixel_std),
        temperature=1.0,
        source="none",
    )
    save_model(path, network, facts)
    return Predictor(path)


def predictor_case(scratch: Path, repeats: int) -> Case:
    """One JPEG of 600x450 from file to Prediction, against the network's forward pass on a ready tensor."""
    predictor, generator = resnet18(scratch / "model.safetensors", 224), np.random.default_rng(0)
    smooth = Image.fromarray(generator.integers(0, 256, (45, 60, 3), dtype=np.uint8))
    smooth.resize((600, 450), Image.Resampling.BICUBIC).save(scratch / "image.jpg", quality=90)
    network = predictor.engine.network
    tensor = torch.rand(1, 3, 224, 224).contiguous(memory_format=torch.channels_last)

    def forward() -> None:
        with torch.inference_mode():
            for _ in range(CALLS):
                network(tensor)

    return compare(
        "predict",
        "images/s",
        CALLS,
        lambda: [predictor.predict(scratch / "image.jpg") for _ in range(CALLS)],
        forward,
        against="bare forward, ResNet-18 at 224 (at most 1.3 x its time)",
        target=1 / 1.3,
        repeats=repeats,
    )


def batch_case(work: Worklist, scratch: Path, size: int, repeats: int) -> Case:
    """A batch of files to its table, against decoding them all and then computing them all, on the same cores."""
    predictor = resnet18(scratch / "model.safetensors", size)
    nothing = np.zeros((32, 3), np.float32)

    def one_after_the_other() -> None:
        with ThreadPoolExecutor(cores()) as pool:
            pixels = list(pool.map(lambda file: predictor.prepare(Path(file)), work.files))
        for start in range(0, len(pixels), 32):
            some = np.stack(pixels[start : start + 32])
            predictor.engine.logits(some, nothing[: len(some)])

    return compare(
        f"batch{size}",
        "images/s",
        len(work.files),
        lambda: predict_batch(predictor, work, scratch / "p.csv", threads=cores()),
        one_after_the_other,
        against="1 / (1/decode + 1/forward), same cores",
        target=0.9,
        repeats=repeats,
    )


def export_cases(files: list[Path], scratch: Path, repeats: int) -> list[Case]:
    """ONNX Runtime in 32 and 8 bits against PyTorch in 32, one image and 32 images at a time."""
    eager = resnet18(scratch / "model.safetensors", 224)
    pixels = np.stack([eager.prepare(file) for file in files[:32]])
    metadata = np.zeros((len(pixels), 3), np.float32)
    export_onnx(scratch / "model.safetensors", scratch / "fp32.onnx", pixels, metadata)
    examples = Examples(pixels, metadata, np.zeros(len(pixels), np.int64))
    write_int8(scratch / "fp32.onnx", scratch / "int8.onnx", examples, uses_metadata=False)
    add_facts(scratch / "int8.onnx", scratch / "int8.onnx", eager.facts)

    def run(predictor: Predictor, count: int) -> Callable[[], None]:
        def work() -> None:
            for _ in range(CALLS if count == 1 else 1):
                predictor.engine.logits(pixels[:count], metadata[:count])

        return work

    return [
        compare(
            f"{bits}x{count}",
            "images/s",
            CALLS if count == 1 else count,
            run(Predictor(scratch / f"{bits}.onnx"), count),
            run(eager, count),
            against=f"eager fp32, {count} image(s) at a time",
            target=0,
            repeats=repeats,
        )
        for bits in ("fp32", "int8")
        for count in (1, len(pixels))
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=Path, help="folder of JPEGs (default: 200 drawn ones)")
    parser.add_argument("--size", type=int, default=96, help="side of the squares in the batch (default: 96)")
    parser.add_argument("--repeats", type=int, default=5, help="pairs of measurements a case")
    arguments = parser.parse_args()
    torch.set_num_threads(cores())
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        if arguments.images is None:
            write_sample(scratch / "sample", images=200, seed=0, processes=cores())
        images = arguments.images or scratch / "sample"
        cases = [
            predictor_case(scratch, arguments.repeats),
            batch_case(worklist(images), scratch, arguments.size, arguments.repeats),
            *export_cases(list(find_images(images).values()), scratch, arguments.repeats),
        ]
        print(f"{len(worklist(images).files):,} images, {cores()} cores, Python {sys.version.split()[0]}")
    print_cases(cases)


if __name__ == "__main__":
    main()
