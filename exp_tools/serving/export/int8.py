"""Quantise an exported model to 8-bit weights and activations; kept only if it scores as well."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from exp_tools.errors import UserError
from exp_tools.evaluation.metrics.classification import confusion_metrics
from exp_tools.evaluation.probabilities import Calibration
from exp_tools.evaluation.validation import confusion
from exp_tools.io import atomic_write, scratch_folder
from exp_tools.serving.export.onnx import ONNX_MISSING, add_facts
from exp_tools.serving.export.parity import with_export, without_ood
from exp_tools.serving.onnx_engine import OnnxEngine

MOST_LOST = 0.01
BATCH = 32


class Examples(NamedTuple):
    """Images as the model sees them: pixels uint8 [N, S, S, 3], metadata float32 [N, 3], labels int64 [N]."""

    pixels: NDArray[np.uint8]
    metadata: NDArray[np.float32]
    labels: NDArray[np.int64]


class Quantised(NamedTuple):
    """The loss of score and the gain of speed with 8 bits.

    images : on how many both were scored
    before, after : balanced accuracy in fp32 and in int8, 0..1
    agreement : share of images with the same diagnosis, 0..1
    bytes_before, bytes_after : size of the files
    """

    images: int
    before: float
    after: float
    agreement: float
    bytes_before: int
    bytes_after: int


def quantise(fp32: Path, out: Path, calibration: Examples, check: Examples) -> Quantised:
    """Write an export again in int8: weights a channel, activations by the ranges that validation images show.

    Parameters
    ----------
    fp32 : what `export_onnx` wrote
    out : the .onnx file to write
    calibration : images that show the ranges, of validation
    check : other images, with labels, on which both files are scored

    Returns
    -------
    Quantised, which is also in the file, under `training.export`

    Raises
    ------
    UserError : the packages for ONNX are missing, there is no image, or more than one point of balanced accuracy is
        lost; then nothing is written
    """
    if not len(calibration.labels) or not len(check.labels):
        raise UserError("8 bits need validation images to calibrate on and test images to score; there are none")
    engine = OnnxEngine(fp32)
    facts = engine.facts
    with scratch_folder() as folder:
        trial = folder / "int8.onnx"
        write_int8(fp32, trial, calibration, uses_metadata=facts.vocabulary is not None)
        add_facts(trial, trial, without_ood(facts))
        was, now = (_predicted(one, check) for one in (engine, OnnxEngine(trial)))
        result = Quantised(
            len(check.labels),
            *(_balanced_accuracy(check.labels, one, len(facts.classes)) for one in (was, now)),
            float((was == now).mean()),
            fp32.stat().st_size,
            trial.stat().st_size,
        )
        if result.before - result.after > MOST_LOST:
            raise UserError(
                f"int8 loses {100 * (result.before - result.after):.1f} points of balanced accuracy "
                f"({result.before:.3f} to {result.after:.3f} on {result.images:,} test images); at most "
                f"{100 * MOST_LOST:.0f} is accepted, so {out} was not written. Use --format onnx"
            )
        record = {"precision": "int8", "calibration_images": len(calibration.labels), **result._asdict()}
        with atomic_write(out) as temporary:
            add_facts(trial, temporary, without_ood(with_export(facts, record)))
    return result


def write_int8(fp32: Path, out: Path, calibration: Examples, *, uses_metadata: bool) -> None:
    """Quantise an export, whatever it costs; `quantise` looks at that. Raises UserError without the packages."""
    try:
        from onnxruntime import quantization
        from onnxruntime.quantization.shape_inference import quant_pre_process
    except ImportError as error:
        raise UserError(ONNX_MISSING) from error

    class Reader(quantization.CalibrationDataReader):
        """Validation images, a batch at a time."""

        def __init__(self) -> None:
            self.batches = _batches(calibration, uses_metadata=uses_metadata)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.batches, None)

    prepared = out.with_name("prepared.onnx")
    quant_pre_process(fp32, prepared, skip_symbolic_shape=True)
    quantization.quantize_static(
        prepared,
        out,
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        op_types_to_quantize=["Conv", "Gemm", "MatMul", "Add", "Relu", "MaxPool", "Concat", "GlobalAveragePool"],
        per_channel=True,
        reduce_range=True,  # CPUs without VNNI add pairs of products in 16 bits, which 8-bit weights overflow
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
    )


def _batches(examples: Examples, *, uses_metadata: bool) -> Iterator[dict[str, np.ndarray]]:
    for start in range(0, len(examples.labels), BATCH):
        some = slice(start, start + BATCH)
        batch: dict[str, np.ndarray] = {"images": np.ascontiguousarray(examples.pixels[some])}
        yield batch | ({"metadata": examples.metadata[some]} if uses_metadata else {})


def _predicted(engine: OnnxEngine, examples: Examples) -> NDArray[np.int64]:
    logits = [
        engine.logits(examples.pixels[start : start + BATCH], examples.metadata[start : start + BATCH])
        for start in range(0, len(examples.labels), BATCH)
    ]
    calibration = Calibration.from_dict(engine.facts.calibration)
    return calibration.decisions(calibration.probabilities(np.concatenate(logits)))


def _balanced_accuracy(labels: NDArray[np.int64], predicted: NDArray[np.int64], classes: int) -> float:
    return float(confusion_metrics(confusion(labels, predicted, classes))["balanced_accuracy"])
