"""Export a trained model to one ONNX file, verified on real images.

The graph takes `images` uint8 [B, S, S, 3] (RGB squares as `load_image` makes them) and, for a model that uses them,
`metadata` float32 [B, 3]; it gives `logits` float32 [B, C] and, where the model file tells pictures unlike the
training images, `features` float32 [B, D]. Normalisation is inside. What the model file says of the
model stands as JSON in the metadata, under the key that the model file has it under.
"""

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from exp_tools.errors import UserError
from exp_tools.io import atomic_write, scratch_folder
from exp_tools.models.model_file import HEADER_KEY, ModelFacts, read_ood
from exp_tools.models.normalize import normalise
from exp_tools.models.registry import load_model
from exp_tools.ood.features import FeatureTap
from exp_tools.ood.judge import packed
from exp_tools.ood.scores import Tensors
from exp_tools.serving.export.parity import Parity, check_request, compare_with, require_close, with_export
from exp_tools.serving.onnx_engine import OOD_KEY, OnnxEngine

TOLERANCE = 1e-4
"""Largest accepted difference of a probability of the export from the model's."""
ONNX_MISSING = "the packages for ONNX are not installed: pip install -e '.[onnx]'"


class Graph(nn.Module):
    """A network preceded by its normalisation: the computation of the ONNX file."""

    def __init__(self, network: nn.Module, *, with_features: bool = False) -> None:
        super().__init__()
        self.network = network
        self.tap = FeatureTap(network) if with_features else None

    def forward(self, images: Tensor, metadata: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """Logits [B, C] of uint8 [B, S, S, 3] and, where the network uses them, metadata [B, 3]; with features [B, D]
        as a pair."""
        pixels = normalise(images, self.network.pixel_mean, self.network.pixel_std)
        logits = self.network(pixels) if metadata is None else self.network(pixels, metadata)
        return logits if self.tap is None else (logits, self.tap.take())


def export_onnx(model: Path, out: Path, pixels: NDArray[np.uint8], metadata: NDArray[np.float32]) -> Parity:
    """Write a model as ONNX and compare the two on images, one by one and as a batch.

    Parameters
    ----------
    model : a model.safetensors
    out : the .onnx file; written only when it computes what the model computes
    pixels : real images as the model sees them [N, S, S, 3], N > 0
    metadata : of their patients [N, 3], see metadata.encode

    Returns
    -------
    Parity, which is also in the file, under `training.export`

    Raises
    ------
    UserError : the packages for ONNX are missing, the model file is none, there is no image, or a probability differs
        by more than TOLERANCE
    """
    check_request(out, ".onnx", pixels)
    require_packages()
    network, facts = load_model(model)
    with torch.inference_mode():
        eager = _eager(network, pixels, metadata)
    with scratch_folder() as folder:
        trial = folder / "trial.onnx"
        size = facts.preprocessing["image_size"]
        given = {"images": torch.zeros(2, size, size, 3, dtype=torch.uint8)}
        if network.uses_metadata:
            given["metadata"] = torch.zeros(2, 3)
        graph, outputs = Graph(network, with_features=bool(facts.ood)), ["logits", *(["features"] if facts.ood else [])]
        write_graph(graph, given, {name: {0: "batch"} for name in given}, outputs, trial)
        ood = read_ood(model)
        add_facts(trial, trial, facts, ood)
        parity = compare_with(eager, OnnxEngine(trial), pixels, metadata)
        require_close(parity, TOLERANCE, model, out)
        with atomic_write(out) as temporary:
            add_facts(trial, temporary, with_export(facts, {"precision": "fp32", **parity._asdict()}), ood)
    return parity


def add_facts(onnx_file: Path, out: Path, facts: ModelFacts, ood: Tensors | None = None) -> None:
    """Write an ONNX file again, with `facts` and the tensors of `facts.ood` for its metadata."""
    import onnx

    content = onnx.load(onnx_file)
    del content.metadata_props[:]
    content.metadata_props.add(key=HEADER_KEY, value=json.dumps(asdict(facts), sort_keys=True))
    if ood:
        content.metadata_props.add(key=OOD_KEY, value=packed(ood))
    out.write_bytes(content.SerializeToString(deterministic=True))


def _eager(network: nn.Module, pixels: NDArray[np.uint8], metadata: NDArray[np.float32]) -> NDArray[np.float32]:
    graph = Graph(network).eval()
    given = [torch.from_numpy(np.require(pixels, requirements=["C", "W"]))]
    if network.uses_metadata:
        given.append(torch.from_numpy(metadata))
    return graph(*given).numpy()


def require_packages() -> None:
    """Raise UserError where the packages for ONNX are missing."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(ONNX_MISSING) from error


def write_graph(
    module: nn.Module,
    given: dict[str, Tensor],
    dynamic: dict[str, dict[int, str]],
    outputs: list[str],
    path: Path,
) -> None:
    """Write a module as ONNX: its inputs by name, as examples, their axes of any length by name, and its outputs."""
    with _quiet():
        program = torch.onnx.export(
            module.eval(),
            tuple(given.values()),
            dynamo=True,
            input_names=list(given),
            output_names=outputs,
            dynamic_shapes=tuple(dynamic[name] for name in given),
            verbose=False,
        )
        program.save(path)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's progress reports, which are of no use here."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
