"""The model file: weights and everything needed to use them, in one safetensors file.

All facts are in one metadata key, as JSON with sorted keys: safetensors writes several keys in a random order, and
equal models must have equal bytes.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from safetensors.torch import save_model as save_tensors
from torch import nn

from exp_tools.errors import UserError, require_readable
from exp_tools.io import atomic_write
from exp_tools.models.model_header import faults_of
from exp_tools.project import MODEL, find_project, has_released

HEADER_KEY = "exp_tools"
OOD_PREFIX = "ood."
"""How the names of tensors begin that are no weights: what tells pictures unlike the training images."""
FORMAT = 2


@dataclass(frozen=True)
class ModelFacts:
    """The metadata of a model file.

    architecture, knobs : name and parameters for build_model
    task, classes : the task and its class names, in the order of the logits
    preprocessing : how load_image makes the input (preprocess.Preprocessing as a dict), as `prepare` wrote it
    pixel_mean, pixel_std : how normalise makes it a tensor; load_model gives them to the network
    calibration : how logits become probabilities and decisions (probabilities.Calibration as a dict); {}: not yet
    ood : how pictures unlike the training images are told (`ood.judge`), with tensors of OOD_PREFIX; {}: they are not
    vocabulary : how metadata become numbers (metadata.Vocabulary as a dict), fitted on train; None: image only
    thresholds : chosen on validation, of calibrated probabilities: `melanoma` (flag from this on; None: no melanoma
        there) for `melanoma_sensitivity`, `abstain` (leave to a human what is less certain) for `abstain_share`
    prediction_sets : score and thresholds of the conformal sets (see prediction_sets.fit_sets); {}: the file has none
    source : name of the data the model was trained on; `synthetic`: no medical data
    training : how it came about (best epoch, scores on validation, precision, threads, seed, checksums of the data)
    versions : of the libraries that made it
    """

    architecture: str
    knobs: dict[str, Any]
    task: str
    classes: list[str]
    preprocessing: dict[str, Any]
    pixel_mean: list[float]
    pixel_std: list[float]
    source: str
    calibration: dict[str, Any] = field(default_factory=dict)
    thresholds: dict[str, float | None] = field(default_factory=dict)
    prediction_sets: dict[str, Any] = field(default_factory=dict)
    ood: dict[str, Any] = field(default_factory=dict)
    vocabulary: dict[str, Any] | None = None
    training: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def chosen_among(self) -> str:
        """What `best_epoch` counts: epochs, or the settings of a probe's head, each of which is a step of training."""
        return "setting" if "decided" in self.training else "epoch"

    @property
    def is_trained(self) -> bool:
        """Whether it records how it came about: the epoch that was best, or members that were trained."""
        return bool(self.training.get("best_epoch") or self.training.get("ensemble_of"))

    @property
    def chosen(self) -> str:
        """Which epoch (or setting) is in it, "best epoch 3; "; empty for an ensemble, of which each member has one."""
        return f"best {self.chosen_among} {self.training['best_epoch']}; " if "best_epoch" in self.training else ""

    @property
    def described(self) -> str:
        """The knobs in words; of an ensemble its members."""
        if "members" not in self.knobs:
            return ", ".join(f"{name} {value}" for name, value in self.knobs.items())
        names = ", ".join(member["architecture"] for member in self.knobs["members"])
        return f"the mean of {len(self.knobs['members'])} networks ({names})"

    @property
    def input(self) -> str:
        """The image that the network takes, in words: its size, how it was made square, and the filters that are on."""
        size, resize = self.preprocessing["image_size"], self.preprocessing["resize"]
        filters = [name.replace("_", " ") for name, value in self.preprocessing.items() if value is True]
        return f"{size} x {size} pixels, {resize}, {' and '.join(filters) or 'no filters'}"


def save_model(path: Path, model: nn.Module, facts: ModelFacts) -> None:
    """Write weights and facts atomically; the same model and facts give the same bytes."""
    header = {HEADER_KEY: json.dumps(asdict(facts), sort_keys=True)}
    with tensor_file(path) as temporary:
        save_tensors(model.cpu(), temporary, metadata=header)


def copy_model(
    origin: Path,
    target: Path,
    facts: ModelFacts,
    *,
    half: bool = False,
    ood: Mapping[str, NDArray[np.float16]] | None = None,
) -> None:
    """Write the weights of one model file with other facts; with `half` matrices and kernels as float16.

    `ood` are the tensors of `facts.ood`, by name without OOD_PREFIX; None: those of the file, if any.

    Raises UserError for a number that float16 cannot hold.
    """
    with safe_open(origin, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        header = (file.metadata() or {}) | {HEADER_KEY: json.dumps(asdict(facts), sort_keys=True)}
    if ood is not None:
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(OOD_PREFIX)}
        tensors |= {OOD_PREFIX + name: torch.from_numpy(np.array(array)) for name, array in ood.items()}
    if half:
        tensors = {name: _halved(name, tensor) for name, tensor in tensors.items()}
    with tensor_file(target) as temporary:
        save_file(tensors, temporary, metadata=header)


@contextmanager
def tensor_file(path: Path) -> Iterator[str]:
    """`atomic_write` with the rights of any other new file: safetensors lets nobody but the owner read its files."""
    with atomic_write(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode
        yield str(temporary)
        temporary.chmod(mode)


def _halved(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if tensor.ndim < 2 or tensor.dtype != torch.float32:
        return tensor
    if not torch.isfinite(small := tensor.half()).all():
        raise UserError(f"float16 holds numbers up to 65,504, and {name} has {tensor.abs().max():.3g}")
    return small


def read_ood(path: Path) -> dict[str, NDArray[np.float16]]:
    """The tensors of `facts.ood` in a model file, by name without OOD_PREFIX; {} where it has none."""
    with safe_open(path, framework="numpy") as file:
        names = [name for name in file.keys() if name.startswith(OOD_PREFIX)]  # noqa: SIM118
        return {name.removeprefix(OOD_PREFIX): file.get_tensor(name) for name in names}


def read_facts(path: Path) -> ModelFacts:
    """Read the facts without the weights. Raises UserError when the file is missing or of another kind."""
    if not path.is_file():
        other = path == MODEL and has_released(find_project(Path.cwd()))
        more = "; --model released is the one that comes with the project" if other else ""
        raise UserError(f"there is no model file {path}; make one with `dvc repro` or fetch it with `dvc pull`{more}")
    require_readable(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise UserError(f"{path} is damaged or no safetensors file: {error}") from error
    if HEADER_KEY not in metadata:
        raise UserError(
            f"{path} holds weights only, not a model of this project: its header has no {HEADER_KEY!r} entry"
        )
    remedy = "write it again with `dvc repro` or fetch it with `dvc pull`"
    return parse_facts(path, metadata[HEADER_KEY], "train it again", remedy)


def parse_facts(path: Path, text: str, renew: str, remedy: str) -> ModelFacts:
    """The facts in the text of a file's header.

    Parameters
    ----------
    path : the file, for messages
    text : the header
    renew, remedy : what to do about a file of another format, and about one that is wrong

    Raises
    ------
    UserError : the text is no JSON, of another format, or a fact is missing or cannot be used
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: its header is not valid JSON ({error}); {remedy}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: its header holds {type(content).__name__} and no named facts; {remedy}")
    if content.get("format") != FORMAT or set(content) - {entry.name for entry in fields(ModelFacts)}:
        made = repr(content.get("format"))[:20]
        raise UserError(f"{path} is of format {made}, this version reads format {FORMAT}: {renew}")
    if (faults := faults_of(content))[0]:
        names, said = faults
        raise UserError(
            f"{path}: its header has no usable {', '.join(names)}, so the file is incomplete or was changed ({said}); "
            f"{remedy}"
        )
    return ModelFacts(**content)


def is_export(path: Path) -> bool:
    """Whether a file is a model file that `exp-tools export` made of another."""
    with suppress(UserError):
        return "export" in read_facts(path).training
    return False


def is_ensemble(path: Path) -> bool:
    """Whether a file is a model file that `exp-tools ensemble` made."""
    with suppress(UserError):
        return "ensemble_of" in read_facts(path).training
    return False
