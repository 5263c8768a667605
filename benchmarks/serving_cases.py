"""What the use of a model costs besides its forward pass, and what an export gains. Weights are random: they cost as
much as trained ones."""

import contextlib
import http.client
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from benchmarks.case import Case, compare
from exp_tools.data.images.preprocess import Preprocessing
from exp_tools.evaluation.probabilities import Calibration
from exp_tools.models.model_file import ModelFacts, save_model
from exp_tools.models.registry import build_model
from exp_tools.serving.batch import predict_batch
from exp_tools.serving.batch_inputs import batch_inputs
from exp_tools.serving.export.int8 import Examples, write_int8
from exp_tools.serving.export.onnx import add_facts, export_onnx
from exp_tools.serving.predictor import Predictor
from exp_tools.system import cores
from exp_tools.taxonomy import DIAGNOSES

CALLS = 10


def resnet18(path: Path, size: int, threads: int | None = None) -> Predictor:
    """A ResNet-18 for squares of `size` pixels, with random weights, on so many threads (None: every core)."""
    torch.set_num_threads(threads or cores())  # before it is built: it keeps the count
    torch.manual_seed(0)
    knobs = {"backbone": "resnet18", "dropout": 0.0}
    network = build_model("timm", knobs, len(DIAGNOSES))
    facts = ModelFacts(
        architecture="timm",
        knobs=knobs,
        task="diagnosis",
        classes=list(DIAGNOSES),
        preprocessing=Preprocessing(size)._asdict(),
        pixel_mean=list(network.pixel_mean),
        pixel_std=list(network.pixel_std),
        calibration=Calibration.none(len(DIAGNOSES)).as_dict(),
        source="none",
    )
    save_model(path, network, facts)
    return Predictor(path)


def predict_one_case(file: Path, scratch: Path, repeats: int) -> Case:
    """One photograph from file to Prediction, against the network's forward pass on a ready tensor."""
    predictor = resnet18(scratch / "model.safetensors", 224)
    network = predictor.engine.network
    tensor = torch.rand(1, 3, 224, 224).contiguous(memory_format=torch.channels_last)

    def forward() -> None:
        with torch.inference_mode():
            for _ in range(CALLS):
                network(tensor)

    return compare(
        "predict_one",
        "images/s",
        CALLS,
        lambda: [predictor.predict(file) for _ in range(CALLS)],
        forward,
        against="bare forward, ResNet-18 at 224 px (1.3 times its time is a ratio of 0.77)",
        target=1 / 1.3,
        repeats=repeats,
    )


def api_overhead_case(file: Path, scratch: Path, repeats: int) -> Case:
    """A photograph sent to the API over a connection that is kept, against the predictor in this process.

    Both compute in one thread, which is what the API gives each request where it takes as many as there are cores.
    """
    predictor = resnet18(scratch / "model.safetensors", 224, threads=1)
    content = file.read_bytes()
    with _api(scratch / "model.safetensors") as address:
        connection = http.client.HTTPConnection(address)
        head = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n'
        form = head + content + b"\r\n--b--\r\n"
        kind = {"Content-Type": "multipart/form-data; boundary=b"}

        def requests() -> None:
            for _ in range(CALLS):
                connection.request("POST", "/predict", form, kind)
                answer = connection.getresponse()
                answer.read()
                assert answer.status == 200

        return compare(
            "api_overhead",
            "images/s",
            CALLS,
            requests,
            lambda: [predictor.predict(content) for _ in range(CALLS)],
            against="the predictor in process, ResNet-18 at 224 px (1.2 times its time is a ratio of 0.83)",
            target=1 / 1.2,
            repeats=2 * repeats,
        )


@contextlib.contextmanager
def _api(model: Path) -> Iterator[str]:
    """`exp-tools api` on this model; gives host and port."""
    words = [sys.executable, "-m", "exp_tools.cli", "api", "--model", str(model), "--port", "0"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            yield re.search(r"http://([\d.:]+)", process.stdout.readline())[1]
        finally:
            process.terminate()


def predict_batch_case(folder: Path, scratch: Path, size: int, repeats: int) -> Case:
    """A folder of files to its table, against decoding them all and then computing them all, on the same cores."""
    predictor, work = resnet18(scratch / "model.safetensors", size), batch_inputs(folder)
    nothing = np.zeros((32, 3), np.float32)

    def one_after_the_other() -> None:
        with ThreadPoolExecutor(cores()) as pool:
            pixels = list(pool.map(lambda file: predictor.prepare(Path(file)), work.files))
        for start in range(0, len(pixels), 32):
            some = np.stack(pixels[start : start + 32])
            predictor.engine.logits(some, nothing[: len(some)])

    return compare(
        "predict_batch",
        "images/s",
        len(work.files),
        lambda: predict_batch(predictor, work, scratch / "p.csv", threads=cores()),
        one_after_the_other,
        against=f"1 / (1/decode + 1/forward), ResNet-18 at {size} px, same cores",
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
            f"onnx_{bits}_{count}",
            "images/s",
            CALLS if count == 1 else count,
            run(Predictor(scratch / f"{bits}.onnx"), count),
            run(eager, count),
            against=f"eager fp32, ResNet-18 at 224 px, {count} at a time",
            target=1,
            repeats=repeats,
        )
        for bits in ("fp32", "int8")
        for count in (1, len(pixels))
    ]
