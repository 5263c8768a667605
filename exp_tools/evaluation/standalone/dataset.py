"""Evaluate an existing model on another set, outside the pipeline: `exp-tools evaluate` and the app's Evaluate page."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from exp_tools.data.acquire.link import provide
from exp_tools.data.duplicates.groups import with_groups
from exp_tools.data.duplicates.pairs import without_known_images
from exp_tools.data.duplicates.verdicts import read_verdicts
from exp_tools.data.images.preprocess import Preprocessing
from exp_tools.data.inputs.metadata import Vocabulary, encode
from exp_tools.data.labels.issues import stop_on, write_report
from exp_tools.data.labels.select import as_task
from exp_tools.data.labels.table import read_labels, typed_labels
from exp_tools.data.labels.validate import tidied
from exp_tools.data.prepare import Packing, check_and_pack
from exp_tools.data.sources.registry import SourceOptions, read_source, spec_of
from exp_tools.devices import prepare_machine
from exp_tools.errors import calling
from exp_tools.evaluation.compare.disturbed import robustness_report
from exp_tools.evaluation.plots.write import draw_figures
from exp_tools.evaluation.predict import VIEWS, predict_views
from exp_tools.evaluation.predictions import prediction_table
from exp_tools.evaluation.probabilities import Calibration
from exp_tools.evaluation.report.build import score_set, with_metadata
from exp_tools.io import file_digest, scratch_folder, write_csv, write_json
from exp_tools.models.model_file import ModelFacts
from exp_tools.models.registry import load_model
from exp_tools.ood.sets import judging
from exp_tools.params import Params
from exp_tools.project import VERDICTS


class TrainingSet(NamedTuple):
    """The project's own set: its unpacked files, its labels, and its source's name."""

    raw: Path
    labels: Path
    source: str


class ReadySet(NamedTuple):
    """A set that the pipeline has already linked.

    name : in the column `split` of the predictions
    raw : its folder, as `provide` fills it
    labels : the images to take of it, with the labels that `prepare` gave them; None: all, less those of the model's
        own set
    """

    name: str
    raw: Path
    labels: pd.DataFrame | None = None


class StandaloneResult(NamedTuple):
    """The report (see score_set), and what was left out and why."""

    report: dict[str, Any]
    left_out: dict[str, int]
    removed: dict[str, int] | None
    """Images that the model's own set also has, by how they were recognised; None where that was not asked."""


Tell = Callable[[str, float], None]
"""Told of a step's name and of the share of it that is done, 0 to 1."""
PARTS = 20
"""How often `Tell` hears of the predictions."""


def evaluate_standalone(
    model: Path,
    source: str,
    wanted: SourceOptions,
    out: Path,
    params: Params,
    *,
    root: Path,
    known: TrainingSet,
    processes: int,
    ready: ReadySet | None = None,
    figures: bool = False,
    tell: Tell = lambda step, share: None,
) -> StandaloneResult:
    """Check, pack, predict and score a set with the model's own preprocessing.

    Parameters
    ----------
    model : the model file; its image size, resizing and touching up are used, not those of params.yaml
    source, wanted : the set, as in `data.external`
    out : the folder to write predictions.csv, report.json and problems.csv to
    params : its sections prepare.on_problem, prepare.duplicates, evaluate and machine
    root : the project: what relative folders are relative to, and where the verdicts on pairs lie
    known : the project's own set. Where it is what the model was made from, its images are taken out of the new one
    processes : for decoding
    ready : the set, where the pipeline has linked it; then nothing is linked or downloaded
    figures : draw those of the evaluate stage too, as PNG into the folder `figures` of `out`
    tell : hears how far the work is

    Raises
    ------
    UserError
        The model file or the set cannot be read, the data have problems that stop (problems.csv is written), or the
        model knows none of its diagnoses.
    """
    device = prepare_machine(params.machine)
    network, facts = load_model(model)
    split = f"external:{source}" if ready is None else ready.name
    with scratch_folder() as folder, calling(folder / "raw", wanted.dir or source):
        raw, images = folder / "raw" if ready is None else ready.raw, folder / "images.npy"
        tell("reading the set", 0)
        if ready is None:
            raw.mkdir()
            provide(source, wanted, raw, root=root, processes=processes)
        every = read_source(source, raw)
        passed_over = [*every.attrs["left_out"], *every["image_id"]]
        packing = _packing(facts, params, processes)
        if ready is None or ready.labels is None:
            table, removed = _without_known(every, facts, known, params.prepare.duplicates, root, processes)
        else:
            ids = tidied(every, spec_of(source).classes)["image_id"]
            table, removed = every[ids.isin(ready.labels["image_id"])], None
            packing = packing._replace(policy=packing.policy | {"unexpected_count": "note"})
        tell(f"decoding {len(table):,} images", 0)
        kept, problems = check_and_pack(table, spec_of(source), raw, images, packing, passed_over)
        write_report(out / "problems.csv", problems)
        stop_on(problems, out / "problems.csv")
        if ready is None or ready.labels is None:
            scored = with_groups(typed_labels(kept))
        else:
            scored = ready.labels.set_index("image_id", drop=False).loc[kept["image_id"]].reset_index(drop=True)
        labels, left_out = as_task(scored, facts.task, facts.classes)
        calibration = Calibration.from_dict(facts.calibration)
        vocabulary = None if facts.vocabulary is None else Vocabulary.from_dict(facts.vocabulary)
        run = {
            "batch_size": params.evaluate.batch_size,
            "device": device,
            "precision": params.evaluate.precision,
            "metadata": None if vocabulary is None else encode(scored, vocabulary),
            "tta": params.evaluate.tta,
        }
        logits, every_row = [], labels.index.to_numpy()
        with judging(network, facts.ood, model) as judge:
            for index in _parts(every_row, params.evaluate.batch_size):
                tell(f"predicting {len(labels):,} images", sum(map(len, logits)) / len(labels))
                logits.append(predict_views(network, images, index, **run).mean(axis=0, dtype=np.float64))
            unlike = judge.columns(images, every_row, len(VIEWS[params.evaluate.tta]))
        predictions = prediction_table(
            labels, split, np.concatenate(logits), facts.classes, calibration, facts.prediction_sets
        ).assign(**unlike)
        described = with_metadata(predictions, labels)
        tell("computing scores and their intervals", 0)
        report = score_set(
            described,
            facts.classes,
            calibration=calibration,
            thresholds=facts.thresholds,
            costs=params.evaluate.costs,
            prevalence=params.evaluate.prevalence,
            subgroups=params.evaluate.subgroups,
            set_coverage=facts.prediction_sets.get("coverage"),
            resamples=params.evaluate.resamples,
            seed=params.evaluate.seed,
        )
        pixels, rows = np.load(images, mmap_mode="r"), described.assign(row=labels.index.to_numpy())

        def predict_again(path: Path, places: np.ndarray) -> pd.DataFrame:
            tell("predicting disturbed images", 0)
            metadata = None if run["metadata"] is None else run["metadata"][places]
            views = predict_views(network, path, np.arange(len(places)), **run | {"metadata": metadata})
            again = views.mean(axis=0, dtype=np.float64)
            return prediction_table(labels.loc[places], split, again, facts.classes, calibration)

        report["robustness"] = robustness_report(
            rows,
            pixels,
            facts.classes,
            predict_again,
            preprocessing=packing.preprocessing,
            kinds=params.evaluate.robustness,
            lesions=params.evaluate.robustness_lesions,
            threshold=facts.thresholds.get("melanoma"),
            resamples=params.evaluate.resamples,
            seed=params.evaluate.seed,
        )
        if figures:
            tell("drawing figures", 0)
            draw_figures(out / "figures", rows, pixels, facts.classes, calibration, report, split)
        del pixels  # Windows removes no file that is mapped
    write_json(out / "report.json", report | {"left_out": left_out, "removed": removed})
    write_csv(out / "predictions.csv", predictions)
    return StandaloneResult(report, left_out, removed)


def _parts(index: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """The rows in at most PARTS pieces of whole batches."""
    size = batch_size * math.ceil(len(index) / batch_size / PARTS)
    return [index[start : start + size] for start in range(0, len(index), size)]


def _packing(facts: ModelFacts, params: Params, processes: int) -> Packing:
    policy = params.prepare.on_problem.model_dump()
    return Packing(Preprocessing(**facts.preprocessing), policy, processes)


def _without_known(
    table: pd.DataFrame, facts: ModelFacts, known: TrainingSet, duplicates: str, root: Path, processes: int
) -> tuple[pd.DataFrame, dict[str, int] | None]:
    """The set without the images that the model was developed on, where the project still has those."""
    if not known.labels.is_file() or not known.raw.is_dir():
        return table, None
    if file_digest(known.labels) != facts.training.get("md5_labels"):
        return table, None
    own = read_source(known.source, known.raw)
    verdicts = read_verdicts(root / VERDICTS)
    return without_known_images(
        table, own, read_labels(known.labels), duplicates, verdicts=verdicts, processes=processes
    )
