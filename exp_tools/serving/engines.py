"""Inference engines: PyTorch for the model file, ONNX Runtime for its export."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from exp_tools.errors import UserError
from exp_tools.explain.maps import attention_map, grad_cam, methods_of, positions
from exp_tools.explain.overlay import upsample
from exp_tools.models.model_file import ModelFacts
from exp_tools.models.normalize import network_inputs
from exp_tools.models.registry import load_model


class Engine(Protocol):
    """Bytes in, logits out."""

    facts: ModelFacts
    explanations: list[str]

    def logits(self, pixels: NDArray[np.uint8], metadata: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits [N, C] of squares [N, S, S, 3] and metadata [N, 3]."""

    def maps(
        self, pixels: NDArray[np.uint8], metadata: NDArray[np.float32], target: int, kinds: Sequence[str]
    ) -> dict[str, NDArray[np.float32]]:
        """Maps [S, S] in 0..1 of one square [1, S, S, 3], by kind."""


def open_engine(model: Path, device: torch.device) -> Engine:
    """The engine for a file, chosen by its ending."""
    if model.suffix == ".onnx":
        from exp_tools.serving.onnx_engine import OnnxEngine

        return OnnxEngine(model)
    return TorchEngine(model, device)


class TorchEngine:
    """The model file, in fp32 and channels_last."""

    def __init__(self, model: Path, device: torch.device) -> None:
        network, self.facts = load_model(model)
        self.network = network.to(device, memory_format=torch.channels_last).requires_grad_(False)
        self.device = device
        size = self.facts.preprocessing["image_size"]
        try:
            places = positions(network, size)
        except (RuntimeError, AssertionError, ValueError) as error:
            reason = " ".join(str(error).split())[:400]
            raise UserError(
                f"{model}: its network takes no images of {size} pixels, as its header says ({reason}); fetch it again"
            ) from error
        self.explanations = methods_of(network, "auto") if places > 1 else []

    def logits(self, pixels: NDArray[np.uint8], metadata: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            return self.network(*self._inputs(pixels, metadata)).float().cpu().numpy()

    def maps(
        self, pixels: NDArray[np.uint8], metadata: NDArray[np.float32], target: int, kinds: Sequence[str]
    ) -> dict[str, NDArray[np.float32]]:
        inputs, size = self._inputs(pixels, metadata), pixels.shape[1]
        found = {}
        for kind in kinds:
            if kind == "gradcam":
                coarse = grad_cam(self.network, inputs, torch.tensor([target], device=self.device))
            else:
                coarse = attention_map(self.network, inputs)
            fine = np.asarray(upsample(coarse, size))[0]
            top = float(fine.max())
            found[kind] = (fine / top if top > 0 else fine).astype(np.float32)
        return found

    def _inputs(self, pixels: NDArray[np.uint8], metadata: NDArray[np.float32]) -> tuple[torch.Tensor, ...]:
        return network_inputs(
            self.network,
            torch.from_numpy(np.require(pixels, requirements=["C", "W"])),
            torch.from_numpy(metadata),
            self.device,
        )
