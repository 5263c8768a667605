"""A trained model ready for use: from an image to a prediction, with evaluation's own preprocessing."""

import math
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image

from exp_tools.data.images.decode import load_image
from exp_tools.data.images.preprocess import Preprocessing
from exp_tools.data.inputs.metadata import UNKNOWN, Vocabulary, encode
from exp_tools.errors import UserError
from exp_tools.evaluation.prediction_sets import set_members
from exp_tools.evaluation.probabilities import Calibration
from exp_tools.explain.overlay import is_flat
from exp_tools.explain.picture import flat_note
from exp_tools.models.model_file import ModelFacts
from exp_tools.models.released import model_path
from exp_tools.ood.judge import Judgement
from exp_tools.serving.engines import open_engine
from exp_tools.serving.set_words import set_note
from exp_tools.taxonomy import DIAGNOSES, MELANOMA, OTHER_DIAGNOSES

DISCLAIMER = (
    "For research and teaching only. Not a medical device: the result is not a diagnosis and must not guide treatment. "
    "See a physician about any skin change."
)
SCOPE = (
    "The model gives every image a diagnosis. Images unlike the training images are flagged, if the model file can "
    "detect them. The flag is not proof: some are missed, and some dermoscopic images are flagged."
)
UNLIKE = (
    "Unlike the images this model was trained on: {why}. It may be no dermoscopic image, or one of another kind, and "
    "the reliability of its probabilities is unknown"
)
CANNOT_TELL = "this model file has no detector of out-of-distribution images: it gives every image a diagnosis"
NO_MAPS = (
    "none: an exported model has no maps, and neither has one whose last map is a single position, which says nothing "
    "of where (train with a larger prepare.image_size)"
)
OLDEST = 120
ImageLike = Path | str | bytes | Image.Image | np.ndarray


@dataclass(frozen=True)
class Patient:
    """Facts about the patient; None: unknown. Age in years (0..120); sex and localization as in label tables."""

    age: float | None = None
    sex: str | None = None
    localization: str | None = None

    def __post_init__(self) -> None:
        if self.age is not None and not (math.isfinite(self.age) and 0 <= self.age <= OLDEST):
            raise UserError(f"the age is {self.age}; expected years from 0 to {OLDEST}, or nothing where it is unknown")


NOBODY = Patient()


@dataclass(frozen=True)
class Prediction:
    """The prediction for one image.

    diagnosis, name, description : the decision, by the model's rule; malignant or pre-malignant, where that is known
    probability : of the diagnosis, calibrated
    probabilities : of every class, in the model's order; they add up to one
    top : the most probable classes, best first: code, name and probability of each
    entropy : of the probabilities, as a share of the largest possible, 0 (certain) to 1 (knows nothing)
    abstain : the highest probability is below the model's threshold: leave it to a human; None: it has no threshold
    melanoma, melanoma_probability : whether the model's threshold flags a melanoma; None: the model has no such class
    prediction_set : codes of the classes that the image does not exclude, in the model's order (see
        evaluation.prediction_sets); None: the model file has no sets
    set_note : the set in words; None likewise
    unlike_training : whether the image is flagged as out of distribution (OOD), so that the prediction's reliability is
        unknown; None: the model file has no detector
    unlike_score : distance of the network's features from those of the training images, 1 at the limit
    unlike_why : the reasons in words, or that the model file has no detector; None where it is not flagged
    notes : what the person should know of this input, and of a map that shows no place
    maps : where the model looked, by method (gradcam, attention): float32 [S, S], 0..1; only when asked for
    """

    diagnosis: str
    name: str
    description: str
    malignant: bool | None
    probability: float
    probabilities: dict[str, float]
    top: list[dict[str, Any]]
    entropy: float
    abstain: bool | None
    melanoma: bool | None
    melanoma_probability: float | None
    prediction_set: list[str] | None = None
    set_note: str | None = None
    unlike_training: bool | None = None
    unlike_score: float | None = None
    unlike_why: str | None = None
    notes: list[str] = field(default_factory=list)
    maps: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    disclaimer: str = DISCLAIMER

    def as_dict(self) -> dict[str, Any]:
        """For JSON: finite numbers and text; the maps are left out."""
        content = {name: value for name, value in self.__dict__.items() if name != "maps"}
        return content | {"top": [dict(one) for one in self.top], "notes": list(self.notes)}


class Predictor:
    """A model file and its inference engine. One instance may serve many threads.

    Parameters
    ----------
    model : path of a model.safetensors of this project, or of the .onnx that `exp-tools export` made of one;
        `released`: the one that comes with the project
    device : where a safetensors model computes; None: the CPU
    top_k : how many classes `Prediction.top` has

    Raises
    ------
    UserError : the file is missing, damaged or no model of this project
    """

    def __init__(self, model: Path | str, *, device: torch.device | None = None, top_k: int = 3) -> None:
        model = model_path(model) if isinstance(model, str) else model
        self.engine = open_engine(model, device or torch.device("cpu"))
        self.calibration = Calibration.from_dict(self.engine.facts.calibration)
        self.path, self.top_k = model, top_k
        self._explaining = threading.Lock()  # one backward pass at a time: memory, and hooks are shared

    @property
    def facts(self) -> ModelFacts:
        """The metadata of the model file."""
        return self.engine.facts

    @property
    def uses_metadata(self) -> bool:
        """Whether age, sex and localization change the prediction."""
        return self.facts.vocabulary is not None

    @property
    def explanations(self) -> list[str]:
        """The kinds of map the model can give: gradcam, attention."""
        return self.engine.explanations

    def predict(self, image: ImageLike, patient: Patient = NOBODY, *, explain: Sequence[str] = ()) -> Prediction:
        """Predict one image.

        Parameters
        ----------
        image : file, its bytes, an image of Pillow's, or uint8 [H, W, 3] RGB of any size
        patient : used by models that take metadata; a note says so where they do not
        explain : kinds of map wanted, of `explanations`

        Raises
        ------
        UserError : the image cannot be read (ImageFault), or the map is none that this model has
        """
        pixels = self.prepare(image)
        wrong = [kind for kind in explain if kind not in self.explanations]
        if wrong:
            raise UserError(f"this model has no {wrong[0]} map; it has {', '.join(self.explanations) or NO_MAPS}")
        prediction = self.predict_pixels(pixels[None], [patient])[0]
        if not explain:
            return prediction
        maps = self.maps(pixels, patient, prediction.diagnosis, explain)
        flat = [flat_note(kind) for kind, heat in maps.items() if is_flat(heat[None])[0]]
        return replace(prediction, maps=maps, notes=prediction.notes + flat)

    def maps(
        self, pixels: NDArray[np.uint8], patient: Patient, target: str, kinds: Sequence[str]
    ) -> dict[str, NDArray[np.float32]]:
        """Maps [S, S] in 0..1 of a prepared square [S, S, 3], by kind; Grad-CAM is that of the class `target`."""
        with self._explaining:
            return self.engine.maps(pixels[None], self._encoded([patient]), self.facts.classes.index(target), kinds)

    def predict_many(self, images: Sequence[ImageLike], patients: Sequence[Patient] | None = None) -> list[Prediction]:
        """Predict images as one batch. Raises UserError when one cannot be read."""
        pixels = [self.prepare(image) for image in images]
        return self.predict_pixels(np.stack(pixels), patients or [NOBODY] * len(pixels)) if pixels else []

    def prepare(self, image: ImageLike) -> NDArray[np.uint8]:
        """The square [S, S, 3] that the model sees: the bytes that `prepare` would pack."""
        facts = self.facts
        if isinstance(image, np.ndarray):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise UserError(f"the array is {image.dtype} {list(image.shape)}; expected uint8 [H, W, 3], RGB")
            image = Image.fromarray(image)
        return load_image(image, Preprocessing(**facts.preprocessing))

    def predict_pixels(self, pixels: NDArray[np.uint8], patients: Sequence[Patient]) -> list[Prediction]:
        """Predict prepared squares, uint8 [N, S, S, 3], with a patient each, as one batch."""
        logits, judged = self.outputs(pixels, self._encoded(patients))
        probabilities = self.calibration.probabilities(logits)
        decided = self.calibration.decisions(probabilities)
        rows = zip(probabilities, decided.tolist(), patients, strict=True)
        made = [self._prediction(row, self.facts.classes[one], patient) for row, one, patient in rows]
        if judged is None:
            return [replace(one, unlike_why=CANNOT_TELL) for one in made]
        seen = zip(made, judged.flagged.tolist(), judged.scores.tolist(), judged.why, strict=True)
        return [
            replace(one, unlike_training=flagged, unlike_score=score, unlike_why=why or None)
            for one, flagged, score, why in seen
        ]

    def outputs(
        self, pixels: NDArray[np.uint8], metadata: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], Judgement | None]:
        """Logits [N, C] of prepared squares, and whether these are unlike the training images; None: it cannot tell."""
        if self.engine.foreign is None:
            return self.engine.logits(pixels, metadata), None
        return self.engine.outputs(pixels, metadata)

    def _encoded(self, patients: Sequence[Patient]) -> NDArray[np.float32]:
        if self.facts.vocabulary is None:
            return np.zeros((len(patients), 3), dtype=np.float32)
        table = pd.DataFrame([asdict(patient) for patient in patients])
        words = table[["sex", "localization"]].astype(object).where(table[["sex", "localization"]].notna(), UNKNOWN)
        return encode(words.assign(age=table["age"]), Vocabulary.from_dict(self.facts.vocabulary))

    def _prediction(self, probabilities: NDArray[np.float64], best: str, patient: Patient) -> Prediction:
        classes, thresholds = self.facts.classes, self.facts.thresholds
        order = np.argsort(-probabilities, kind="stable")
        confidence = float(probabilities[order[0]])
        abstain, flag = thresholds.get("abstain"), thresholds.get("melanoma")
        p_melanoma = float(probabilities[classes.index(MELANOMA)]) if MELANOMA in classes else None
        positive = probabilities[probabilities > 0]
        return Prediction(
            diagnosis=best,
            name=name_of(best),
            description=description_of(best),
            malignant=is_malignant(best),
            probability=float(probabilities[classes.index(best)]),
            probabilities=dict(zip(classes, probabilities.tolist(), strict=True)),
            top=[
                {"code": classes[c], "name": name_of(classes[c]), "probability": float(probabilities[c])}
                for c in order[: self.top_k]
            ],
            entropy=max(0.0, float(-(positive * np.log(positive)).sum() / math.log(max(2, len(classes))))),
            abstain=None if abstain is None else confidence < abstain,
            melanoma=None if flag is None or p_melanoma is None else p_melanoma >= flag,
            melanoma_probability=p_melanoma,
            **self._set_of(probabilities, best),
            notes=self._notes(patient),
        )

    def _set_of(self, probabilities: NDArray[np.float64], best: str) -> dict[str, Any]:
        classes, sets = self.facts.classes, self.facts.prediction_sets
        if not sets:
            return {}
        members = set_members(sets, classes, probabilities[None])[0]
        held = [code for code, member in zip(classes, members.tolist(), strict=True) if member]
        names = {code: name_of(code) for code in classes}
        return {"prediction_set": held, "set_note": set_note(sets, names, held, best, self.facts.source)}

    def _notes(self, patient: Patient) -> list[str]:
        given = {name: value for name, value in asdict(patient).items() if value is not None}
        if self.facts.vocabulary is None:
            return [f"this model looks at the image alone; not used: {', '.join(given)}"] if given else []
        notes = []
        lacking = [name for name in ("age", "sex", "localization") if name not in given]
        if lacking:
            notes.append(f"taken as unknown: {', '.join(lacking)}; this model was trained with them")
        for name in ("sex", "localization"):
            value, known = given.get(name), self.facts.vocabulary[name]
            if value is not None and value not in known:
                notes.append(f"the model never saw the {name} {value!r}; it knows {', '.join(known)}")
        return notes


def name_of(code: str) -> str:
    """A class's name for people."""
    diagnosis = DIAGNOSES.get(code) or OTHER_DIAGNOSES.get(code)
    return diagnosis.name if diagnosis else "Not melanoma" if code == "non_mel" else code


def description_of(code: str) -> str:
    """A one-line description of a class; "" for classes of the user's own."""
    diagnosis = DIAGNOSES.get(code) or OTHER_DIAGNOSES.get(code)
    return diagnosis.description if diagnosis else "anything but melanoma" if code == "non_mel" else ""


def is_malignant(code: str) -> bool | None:
    """Whether a class is malignant or pre-malignant; None where unknown (a class of the user's own)."""
    diagnosis = DIAGNOSES.get(code) or OTHER_DIAGNOSES.get(code)
    return diagnosis.malignant if diagnosis else None
