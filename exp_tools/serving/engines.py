"""Inference engines: PyTorch for the model file, ONNX Runtime for its export."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from exp_tools.errors import UserError
from exp_tools.explain.maps import attention_map, grad_cam, methods_of, positions
from exp_tools.explain.overlay import upsample
from exp_tools.models.model_file import ModelFacts, read_ood
from exp_tools.models.normalize import network_inputs
from exp_tools.models.registry import load_model
from exp_tools.ood.features import FeatureTap
from exp_tools.ood.judge import ForeignJudge, Judgement
from exp_tools.system import cores

SMALL_BATCH = 1_000_000_000
"""Multiply-adds of a batch that few threads compute, 20 to 60 ms of a core: more save little of that, and next to other
work each of them waits for the slowest."""
FEW_THREADS = 2
"""Of a small batch. Next to a training on all cores, one that never waits got 1 of 3 to 4 time slices; two that sleep
when they wait for each other are woken at once, and were 4 times as fast (two cores, Linux)."""


class Engine(Protocol):
    """Bytes in, logits out; `foreign` detects OOD images by features, None: the model file has no detector."""

    facts: ModelFacts
    explanations: list[str]
    foreign: ForeignJudge | None

    def outputs(
        self, pixels: NDArray[np.uint8], metadata: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], Judgement | None]:
        """Logits [N, C] as `logits` gives them, and whether the squares are unlike the training images."""

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
    """The model file, in fp32 and channels_last.

    Batches up to SMALL_BATCH take FEW_THREADS at most, larger ones `threads`: as many as torch has when the engine is
    made, but no more than the CPU quota allows. torch's own setting is the same after a call as before.
    """

    def __init__(self, model: Path, device: torch.device) -> None:
        network, self.facts = load_model(model)
        self.network = network.to(device, memory_format=torch.channels_last).requires_grad_(False)
        self.device = device
        self.foreign = ForeignJudge(self.facts.ood, read_ood(model)) if self.facts.ood else None
        self._tap = FeatureTap(network) if self.foreign else None
        size = self.facts.preprocessing["image_size"]
        self.threads = min(torch.get_num_threads(), cores())
        try:
            self.multiply_adds, places = _multiply_adds(network, lambda: positions(network, size))
        except (RuntimeError, AssertionError, ValueError) as error:
            reason = " ".join(str(error).split())[:400]
            raise UserError(
                f"{model}: its network takes no images of {size} pixels, as its header says ({reason}); fetch it again"
            ) from error
        self.explanations = methods_of(network, "auto") if places > 1 else []

    def logits(self, pixels: NDArray[np.uint8], metadata: NDArray[np.float32]) -> NDArray[np.float32]:
        return self.outputs(pixels, metadata)[0]

    def outputs(
        self, pixels: NDArray[np.uint8], metadata: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], Judgement | None]:
        with self._threads_for(len(pixels)), torch.inference_mode():
            logits = self.network(*self._inputs(pixels, metadata)).float().cpu().numpy()
            if self.foreign is None or self._tap is None:
                return logits, None
            return logits, self.foreign.judge(pixels, self._tap.take().float().cpu().numpy())

    def maps(
        self, pixels: NDArray[np.uint8], metadata: NDArray[np.float32], target: int, kinds: Sequence[str]
    ) -> dict[str, NDArray[np.float32]]:
        inputs, size = self._inputs(pixels, metadata), pixels.shape[1]
        found = {}
        for kind in kinds:
            with self._threads_for(1):
                if kind == "gradcam":
                    coarse = grad_cam(self.network, inputs, torch.tensor([target], device=self.device))
                else:
                    coarse = attention_map(self.network, inputs)
            fine = np.asarray(upsample(coarse, size))[0]
            top = float(fine.max())
            found[kind] = (fine / top if top > 0 else fine).astype(np.float32)
        return found

    @contextlib.contextmanager
    def _threads_for(self, images: int) -> Iterator[None]:
        before = torch.get_num_threads()
        few = images * self.multiply_adds <= SMALL_BATCH
        torch.set_num_threads(min(FEW_THREADS, self.threads) if few else self.threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    def _inputs(self, pixels: NDArray[np.uint8], metadata: NDArray[np.float32]) -> tuple[torch.Tensor, ...]:
        return network_inputs(
            self.network,
            torch.from_numpy(np.require(pixels, requirements=["C", "W"])),
            torch.from_numpy(metadata),
            self.device,
        )


def _multiply_adds(network: nn.Module, run: Callable[[], int]) -> tuple[int, int]:
    """Multiply-adds of the convolutions and linear layers in a call that runs the network, and the call's result."""
    total = 0

    def count(module: nn.Module, _: Any, output: torch.Tensor) -> None:
        nonlocal total
        total += output.numel() * module.weight[0].numel()

    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_hook(count) for layer in layers]
    try:
        result = run()
        return total, result
    finally:
        for handle in handles:
            handle.remove()
