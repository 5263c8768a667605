"""The command `exp-tools export`: the images to verify on, the file, and the report."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from exp_tools.data.images.decode import find_images, load_image
from exp_tools.data.images.preprocess import Preprocessing
from exp_tools.data.inputs.metadata import Vocabulary, encode
from exp_tools.data.labels.select import as_task
from exp_tools.data.labels.table import read_labels, read_splits
from exp_tools.errors import UserError, require_file
from exp_tools.io import file_digest, scratch_folder
from exp_tools.models.model_file import ModelFacts, read_facts
from exp_tools.serving.export.half import export_half
from exp_tools.serving.export.int8 import Examples, Quantised, quantise
from exp_tools.serving.export.onnx import export_onnx
from exp_tools.serving.export.parity import Parity
from exp_tools.serving.export.sidecar import write_sidecar
from exp_tools.serving.export.whole import Draft, export_whole


class PreparedData(NamedTuple):
    """Where labels.csv, splits.csv, images.npy and the raw images are."""

    labels: Path
    splits: Path
    images: Path
    raw: Path


class Rows(NamedTuple):
    """Images of a split: their places in images.npy and ids [N], metadata float32 [N, 3], labels int64 [N]."""

    places: NDArray[np.int64]
    ids: list[str]
    metadata: NDArray[np.float32]
    labels: NDArray[np.int64]


def rows_of(facts: ModelFacts, data: PreparedData, wanted: Sequence[tuple[str, int | None]]) -> list[Rows]:
    """Rows of splits of the data that a model was made from.

    Parameters
    ----------
    facts : of the model; another model's images would be of another size, or its test images this one's training
    data : what `prepare` and `split` made
    wanted : a split, and at most how many of its images, spread evenly over it (None: all)

    Raises
    ------
    UserError : a file is missing, or the model was made from other data
    """
    require_file(data.labels, "prepare")
    require_file(data.splits, "split")
    every = read_labels(data.labels)
    split = read_splits(data.splits)["split"].to_numpy()
    digests = {"md5_labels": file_digest(data.labels), "md5_splits": file_digest(data.splits)}
    if any(facts.training.get(name) != digest for name, digest in digests.items()):
        raise UserError(
            f"the model was trained on other data than {data.labels} and {data.splits} name: run `dvc repro`, or give "
            "images of your own with --images FOLDER"
        )
    known, _ = as_task(every, facts.task, facts.classes)
    places = {name: place for place, name in enumerate(facts.classes)}
    vocabulary = None if facts.vocabulary is None else Vocabulary.from_dict(facts.vocabulary)
    metadata = np.zeros((len(every), 3), np.float32) if vocabulary is None else encode(every, vocabulary)
    found = []
    for name, count in wanted:
        rows = known.index[split[known.index] == name].to_numpy()
        if count is not None and count < len(rows):
            rows = rows[np.linspace(0, len(rows) - 1, count).round().astype(int)]
        labels = known.loc[rows, "dx"].map(places).to_numpy(dtype=np.int64)
        found.append(Rows(rows, known.loc[rows, "image_id"].tolist(), metadata[rows], labels))
    return found


def packed_examples(facts: ModelFacts, data: PreparedData, wanted: Sequence[tuple[str, int | None]]) -> list[Examples]:
    """The packed images of `rows_of`. Raises UserError as that does, or where they are missing."""
    require_file(data.images, "prepare")
    packed = np.load(data.images, mmap_mode="r")
    return [Examples(packed[rows.places], rows.metadata, rows.labels) for rows in rows_of(facts, data, wanted)]


CHECKED = 64
CALIBRATION = 256


def export_model(
    model: Path, out: Path, data: PreparedData, *, images: Path | None, form: str, with_preprocessing: bool = False
) -> str:
    """Write a model as ONNX, in 32 bits or 8, or as a model file of 16, and report the difference from the model.

    Parameters
    ----------
    model, out : the model.safetensors to read, the file to write
    data : what `prepare` and `split` made, for test images and, in 8 bits, validation images
    images : a folder of images to check on instead, but for 8 bits, which need labels
    form : onnx, onnx-int8 or half
    with_preprocessing : the graph takes whole pictures and gives the decision (onnx only)

    Returns
    -------
    A text for the person: parity and, in 8 bits, what was lost. Next to an ONNX file there is then its description,
    see `sidecar`

    Raises
    ------
    UserError : as export_onnx, export_half and quantise, or there are no images, or those of another data set
    """
    if with_preprocessing and form != "onnx":
        raise UserError(f"--with-preprocessing is for --format onnx, not {form}: leave one of the two away")
    facts = read_facts(model)
    if with_preprocessing:
        files, metadata = _picture_files(facts, data, images)
        parity, draft = export_whole(model, out, files, metadata)
        write_sidecar(out, draft)
        return f"{_parity_text(out, parity)}; {_draft_text(draft)}"
    text = _export(model, out, facts, data, images, form)
    if form != "half":
        write_sidecar(out, None)
    return text


def _export(model: Path, out: Path, facts: ModelFacts, data: PreparedData, images: Path | None, form: str) -> str:
    write = export_half if form == "half" else export_onnx
    if images is not None:
        if form == "onnx-int8":
            raise UserError("8 bits need the labelled images of the project: leave --images away")
        check = _folder_examples(facts, images)
        return _parity_text(out, write(model, out, check.pixels, check.metadata))
    if form != "onnx-int8":
        (check,) = packed_examples(facts, data, [("test", CHECKED)])
        return _parity_text(out, write(model, out, check.pixels, check.metadata))
    if out.suffix != ".onnx":
        raise UserError(f"an export is called something.onnx, not {out.name}: the ending says how a model is read")
    calibration, check = packed_examples(facts, data, [("val", CALIBRATION), ("test", None)])
    with scratch_folder() as folder:
        fp32 = folder / "fp32.onnx"
        export_onnx(model, fp32, check.pixels[:CHECKED], check.metadata[:CHECKED])
        return _int8_text(out, quantise(fp32, out, calibration, check), len(calibration.labels))


def _picture_files(
    facts: ModelFacts, data: PreparedData, folder: Path | None
) -> tuple[list[Path], NDArray[np.float32]]:
    """Files to compare on and their metadata [N, 3]: those of a folder, else of the project's test images."""
    if folder is not None:
        files = _folder_files(folder)
        return files, np.zeros((len(files), 3), np.float32)
    (rows,) = rows_of(facts, data, [("test", CHECKED)])
    known = find_images(data.raw)
    if missing := [name for name in rows.ids if name not in known]:
        raise UserError(
            f"the picture of {missing[0]} is not below {data.raw}: run `dvc repro download`, or give pictures of your "
            "own with --images FOLDER"
        )
    return [known[name] for name in rows.ids], rows.metadata


def _folder_files(folder: Path) -> list[Path]:
    files = list(find_images(folder).values())[:CHECKED]
    if not files:
        raise UserError(f"there is no image below {folder}")
    return files


def _folder_examples(facts: ModelFacts, folder: Path) -> Examples:
    files = _folder_files(folder)
    preprocessing = Preprocessing(**facts.preprocessing)
    pixels = np.stack([load_image(file, preprocessing) for file in files])
    return Examples(pixels, np.zeros((len(files), 3), np.float32), np.full(len(files), -1))


def _parity_text(out: Path, parity: Parity) -> str:
    logit = "" if parity.logits is None else f"{parity.logits:.1e} in a logit and "
    return (
        f"{out}: on {parity.images:,} images the largest difference from the model is {logit}"
        f"{parity.probabilities:.1e} in a probability; {parity.changed} get another diagnosis"
    )


def _draft_text(draft: Draft) -> str:
    return (
        f"JPEGs decoded in full instead of at a reduced scale change a probability by up to {draft.probabilities:.1e} "
        f"in the model itself; {draft.changed} get another diagnosis"
    )


def _int8_text(out: Path, result: Quantised, calibrated: int) -> str:
    return (
        f"{out}: balanced accuracy {result.before:.4f} in fp32, {result.after:.4f} in int8, on {result.images:,} test "
        f"images, of which {100 * result.agreement:.1f} % get the same diagnosis; ranges from {calibrated:,} "
        f"validation images; {result.bytes_before / 1e6:.1f} MB became {result.bytes_after / 1e6:.1f} MB"
    )
