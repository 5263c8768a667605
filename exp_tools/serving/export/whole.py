"""Export a model with all that is around it, from a whole picture's pixels to the decision, for programs of others."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from exp_tools.data.images.decode import load_image
from exp_tools.data.images.preprocess import Preprocessing
from exp_tools.errors import UserError
from exp_tools.evaluation.probabilities import Calibration
from exp_tools.io import atomic_write, scratch_folder
from exp_tools.models.registry import load_model
from exp_tools.serving.engines import TorchEngine
from exp_tools.serving.export.onnx import add_facts, require_packages, write_graph
from exp_tools.serving.export.parity import Parity, check_request, require_close, with_export, without_ood
from exp_tools.serving.export.whole_graph import WholeGraph

TOLERANCE = 0.01
"""Largest accepted difference of a probability from the model's on the same pixels."""
LARGEST = 10**6
"""Longest side in pixels of a whole picture: none that `load_image` reads is larger, so none is scaled."""


class Draft(NamedTuple):
    """What decoding JPEGs at a reduced scale changes, which this project does and no graph can: in the model itself.

    images : on how many it was looked at, JPEGs that are far larger than the model's input and others
    probabilities : the largest difference from full decoding
    changed : images that get another diagnosis
    """

    images: int
    probabilities: float
    changed: int


def export_whole(model: Path, out: Path, files: Sequence[Path], metadata: NDArray[np.float32]) -> tuple[Parity, Draft]:
    """Write a model with its preprocessing, calibration and decision as one ONNX graph, compared on picture files.

    Parameters
    ----------
    model : a model.safetensors
    out : the .onnx file; written only when it computes what the model computes
    files : picture files as people have them, at least one
    metadata : of their patients [N, 3], see metadata.encode

    Returns
    -------
    The difference from the model on the same pixels, all of each picture decoded; and what reduced decoding changes.
    Parity is also in the file, under `training.export`

    Raises
    ------
    UserError : the packages for ONNX are missing, the model has a filter that is no graph, there is no picture, or a
        probability differs by more than TOLERANCE
    """
    check_request(out, ".onnx", files)
    require_packages()
    network, facts = load_model(model)
    preprocessing, calibration = Preprocessing(**facts.preprocessing), Calibration.from_dict(facts.calibration)
    if filters := [name for name, value in facts.preprocessing.items() if value is True]:
        raise UserError(
            f"{model} looks at images after {' and '.join(filters)}, which is no part of an ONNX graph: leave "
            "--with-preprocessing away, or train with prepare."
            + ", prepare.".join(f"{name}: false" for name in filters)
        )
    with scratch_folder() as folder:
        trial = folder / "trial.onnx"
        _write(network, preprocessing, calibration, trial)
        pictures = (whole_picture(file) for file in files)
        found, squares = [], []
        session = _session(trial)
        for picture, numbers in zip(pictures, metadata, strict=True):
            found.append(_run(session, picture, numbers))
            squares.append(load_image(Image.fromarray(picture), preprocessing))
        full = _probabilities(model, np.stack(squares), metadata, calibration)
        own = np.stack([load_image(file, preprocessing) for file in files])
        drafted = _probabilities(model, own, metadata, calibration)
        parity = _parity(found, full, calibration)
        require_close(parity, TOLERANCE, model, out)
        made = {"precision": "fp32", "with_preprocessing": True, **parity._asdict()}
        with atomic_write(out) as temporary:
            add_facts(trial, temporary, without_ood(with_export(facts, made)))
    changed = calibration.decisions(full) != calibration.decisions(drafted)
    return parity, Draft(len(files), float(np.abs(full - drafted).max()), int(changed.sum()))


def whole_picture(file: Path) -> NDArray[np.uint8]:
    """All pixels of a picture, uint8 [H, W, 3]: upright, 8-bit sRGB, transparency on white, JPEGs decoded in full."""
    return load_image(file, Preprocessing(LARGEST, resize="keep"))


def _write(network: nn.Module, preprocessing: Preprocessing, calibration: Calibration, path: Path) -> None:
    graph = WholeGraph(network, preprocessing.image_size, preprocessing.resize, calibration)
    given = {"image": torch.zeros(50, 60, 3, dtype=torch.uint8)}
    if network.uses_metadata:
        given["metadata"] = torch.zeros(1, 3)
    dynamic = {"image": {0: "height", 1: "width"}, "metadata": {}}
    write_graph(graph, given, dynamic, ["probabilities", "decision"], path)


def _session(path: Path):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _run(session, picture: NDArray[np.uint8], metadata: NDArray[np.float32]) -> tuple[NDArray[np.float32], int]:
    given = {"image": picture, "metadata": metadata[None]}
    probabilities, decision = session.run(None, {one.name: given[one.name] for one in session.get_inputs()})
    return probabilities, int(decision)


def _probabilities(
    model: Path, squares: NDArray[np.uint8], metadata: NDArray[np.float32], calibration: Calibration
) -> NDArray[np.float64]:
    return calibration.probabilities(TorchEngine(model, torch.device("cpu")).logits(squares, metadata))


def _parity(
    found: Sequence[tuple[NDArray[np.float32], int]], expected: NDArray[np.float64], calibration: Calibration
) -> Parity:
    probabilities, decided = np.stack([one for one, _ in found]), np.array([place for _, place in found])
    apart = float(np.abs(probabilities - expected).max())
    return Parity(len(found), None, apart, int((decided != calibration.decisions(expected)).sum()))
