"""What `exp-tools export` does: the images to check on, the file, and what to say of it."""

import tempfile
from pathlib import Path

import numpy as np

from exp_tools.data.dermoscopy import TouchUp
from exp_tools.data.images import find_images, load_image
from exp_tools.errors import UserError
from exp_tools.models.artifact import ModelFacts, read_facts
from exp_tools.serving.examples import PreparedData, packed_examples
from exp_tools.serving.export import Parity, export_onnx
from exp_tools.serving.quantise import Examples, Quantised, quantise

CHECKED = 64
CALIBRATION = 256


def export_model(model: Path, out: Path, data: PreparedData, *, images: Path | None, int8: bool) -> str:
    """Write a model as ONNX, in 32 bits or 8, and say how far the file is from the model.

    Parameters
    ----------
    model, out : the model.safetensors to read, the .onnx to write
    data : what `prepare` and `split` made, for test images and, in 8 bits, validation images
    images : a folder of images to check on instead, for 32 bits: 8 bits need labels
    int8 : 8 bits

    Returns
    -------
    A text for the person: parity and, in 8 bits, what was lost

    Raises
    ------
    UserError : as export_onnx and quantise, or there are no images, or those of another data set
    """
    facts = read_facts(model)
    if images is not None:
        if int8:
            raise UserError("8 bits need the labelled images of the project: leave --images away")
        check = _folder_examples(facts, images)
        return _parity_text(out, export_onnx(model, out, check.pixels, check.metadata))
    if not int8:
        (check,) = packed_examples(facts, data, [("test", CHECKED)])
        return _parity_text(out, export_onnx(model, out, check.pixels, check.metadata))
    if out.suffix != ".onnx":
        raise UserError(f"an export is called something.onnx, not {out.name}: the ending says how a model is read")
    calibration, check = packed_examples(facts, data, [("val", CALIBRATION), ("test", None)])
    with tempfile.TemporaryDirectory(prefix="exp-tools-") as folder:
        fp32 = Path(folder) / "fp32.onnx"
        export_onnx(model, fp32, check.pixels[:CHECKED], check.metadata[:CHECKED])
        return _int8_text(out, quantise(fp32, out, calibration, check), len(calibration.labels))


def _folder_examples(facts: ModelFacts, folder: Path) -> Examples:
    files = list(find_images(folder).values())[:CHECKED]
    if not files:
        raise UserError(f"there is no image below {folder}")
    touch_up = TouchUp(**facts.touch_up)
    pixels = np.stack([load_image(file, facts.image_size, facts.resize, touch_up) for file in files])
    return Examples(pixels, np.zeros((len(files), 3), np.float32), np.full(len(files), -1))


def _parity_text(out: Path, parity: Parity) -> str:
    return (
        f"{out}: on {parity.images:,} images the largest difference from the model is {parity.logits:.1e} in a logit "
        f"and {parity.probabilities:.1e} in a probability; {parity.changed} get another diagnosis"
    )


def _int8_text(out: Path, result: Quantised, calibrated: int) -> str:
    return (
        f"{out}: balanced accuracy {result.before:.4f} in fp32, {result.after:.4f} in int8, on {result.images:,} test "
        f"images, of which {100 * result.agreement:.1f} % get the same diagnosis; ranges from {calibrated:,} "
        f"validation images; {result.bytes_before / 1e6:.1f} MB became {result.bytes_after / 1e6:.1f} MB"
    )
