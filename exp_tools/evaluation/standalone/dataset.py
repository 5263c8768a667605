"""Evaluate an existing model on another set, outside the pipeline: `exp-tools evaluate`."""

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
from exp_tools.data.prepare import Packing, check_and_pack
from exp_tools.data.sources.registry import SourceOptions, read_source, spec_of
from exp_tools.devices import prepare_machine
from exp_tools.errors import calling
from exp_tools.evaluation.predict import predict_views
from exp_tools.evaluation.predictions import prediction_table
from exp_tools.evaluation.probabilities import Calibration
from exp_tools.evaluation.report.build import score_set, with_metadata
from exp_tools.io import file_digest, scratch_folder, write_csv, write_json
from exp_tools.models.model_file import ModelFacts
from exp_tools.models.registry import load_model
from exp_tools.params import Params
from exp_tools.project import VERDICTS


class TrainingSet(NamedTuple):
    """The project's own set: its unpacked files, its labels, and its source's name."""

    raw: Path
    labels: Path
    source: str


class StandaloneResult(NamedTuple):
    """The report (see score_set), and what was left out and why."""

    report: dict[str, Any]
    left_out: dict[str, int]
    removed: dict[str, int] | None
    """Images that the model's own set also has, by how they were recognised; None where that set is not available."""


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

    Raises
    ------
    UserError
        The model file or the set cannot be read, the data have problems that stop (problems.csv is written), or the
        model knows none of its diagnoses.
    """
    device = prepare_machine(params.machine)
    network, facts = load_model(model)
    with scratch_folder() as folder, calling(folder / "raw", wanted.dir or source):
        raw, images = folder / "raw", folder / "images.npy"
        raw.mkdir()
        provide(source, wanted, raw, root=root, processes=processes)
        every = read_source(source, raw)
        table, removed = _without_known(every, facts, known, params.prepare.duplicates, root, processes)
        passed_over = [*every.attrs["left_out"], *every["image_id"]]
        packing = _packing(facts, params, processes)
        kept, problems = check_and_pack(table, spec_of(source), raw, images, packing, passed_over)
        write_report(out / "problems.csv", problems)
        stop_on(problems, out / "problems.csv")
        scored = with_groups(typed_labels(kept))
        labels, left_out = as_task(scored, facts.task, facts.classes)
        calibration = Calibration.from_dict(facts.calibration)
        vocabulary = None if facts.vocabulary is None else Vocabulary.from_dict(facts.vocabulary)
        logits = predict_views(
            network,
            images,
            labels.index.to_numpy(),
            batch_size=params.evaluate.batch_size,
            device=device,
            precision=params.evaluate.precision,
            metadata=None if vocabulary is None else encode(scored, vocabulary),
            tta=params.evaluate.tta,
        ).mean(axis=0, dtype=np.float64)
    predictions = prediction_table(labels, f"external:{source}", logits, facts.classes, calibration)
    report = score_set(
        with_metadata(predictions, labels),
        facts.classes,
        calibration=calibration,
        thresholds=facts.thresholds,
        costs=params.evaluate.costs,
        prevalence=params.evaluate.prevalence,
        subgroups=params.evaluate.subgroups,
        resamples=params.evaluate.resamples,
        seed=params.evaluate.seed,
    )
    write_json(out / "report.json", report | {"left_out": left_out, "removed": removed})
    write_csv(out / "predictions.csv", predictions)
    return StandaloneResult(report, left_out, removed)


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
