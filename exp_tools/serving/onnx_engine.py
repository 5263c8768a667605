"""Run an exported ONNX model with ONNX Runtime on the CPU."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from exp_tools.errors import UserError, require_readable
from exp_tools.models.model_file import HEADER_KEY, ModelFacts, parse_facts
from exp_tools.ood.judge import ForeignJudge, Judgement, unpacked
from exp_tools.system import cores

OOD_KEY = "exp_tools_ood"
"""Of the metadata of an export whose graph gives `features`: the tensors of `facts.ood`, see `ood.judge.packed`."""
ORT_MISSING = "ONNX Runtime is not installed: pip install -e '.[onnx]'"


class OnnxEngine:
    """Bytes in, logits out, as in `engines.Engine`. It has no maps: an export holds no gradients.

    One session serves many threads; it computes on as many cores as torch does, no more than the CPU quota allows, and
    its threads sleep while they wait: spinning, they would hold up other work and be held up by it.

    Raises
    ------
    UserError : the file is missing, damaged or no export of this project, or ONNX Runtime is not installed
    """

    def __init__(self, model: Path) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise UserError(ORT_MISSING) from error
        if not model.is_file():
            raise UserError(f"there is no model file {model}; make one with `exp-tools export`")
        require_readable(model)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = min(torch.get_num_threads(), cores())
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3  # its warnings are about the graph, which cannot be fixed here
        try:
            self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # one class a kind of damage, of which only the binding's own module knows
            raise UserError(f"{model} is damaged or no ONNX file: {_first_line(error)}") from error
        self.facts = facts_of(self._session.get_modelmeta().custom_metadata_map, model)
        self.explanations: list[str] = []
        self.foreign = None
        if self.facts.ood:
            packed = self._session.get_modelmeta().custom_metadata_map.get(OOD_KEY, "")
            self.foreign = ForeignJudge(self.facts.ood, unpacked(packed, model))
        self._inputs = {entry.name for entry in self._session.get_inputs()}
        if "images" not in self._inputs:
            raise UserError(
                f"{model} holds its own preprocessing and is for other programs: take the model file it was made of, "
                "or an export without --with-preprocessing"
            )

    def logits(self, pixels: NDArray[np.uint8], metadata: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits [N, C] of squares [N, S, S, 3] and metadata [N, 3], which an image model does not look at."""
        return self._run(["logits"], pixels, metadata)[0]

    def outputs(
        self, pixels: NDArray[np.uint8], metadata: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], Judgement | None]:
        """Logits [N, C], and whether the squares are unlike the training images; None where the export cannot tell."""
        if self.foreign is None:
            return self.logits(pixels, metadata), None
        logits, features = self._run(["logits", "features"], pixels, metadata)
        return logits, self.foreign.judge(pixels, features)

    def _run(
        self, outputs: list[str], pixels: NDArray[np.uint8], metadata: NDArray[np.float32]
    ) -> list[NDArray[np.float32]]:
        given = {"images": np.ascontiguousarray(pixels), "metadata": metadata}
        return self._session.run(outputs, {name: given[name] for name in self._inputs})

    def maps(
        self, pixels: NDArray[np.uint8], metadata: NDArray[np.float32], target: int, kinds: Sequence[str]
    ) -> dict[str, NDArray[np.float32]]:
        """Raises UserError: for maps take the model.safetensors that the export was made of."""
        raise UserError("an ONNX export gives no maps; use the model.safetensors that it was made of")


def facts_of(metadata: Mapping[str, str], path: Path) -> ModelFacts:
    """The facts in the metadata of an ONNX file. Raises UserError when there are none, or none that can be read."""
    if HEADER_KEY not in metadata:
        raise UserError(f"{path} is not an export of this project: its metadata have no {HEADER_KEY!r} entry")
    return parse_facts(path, metadata[HEADER_KEY], "export it again", "export it again")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
