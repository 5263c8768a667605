"""Predict many images: decoded in threads while the model computes, resumed after an interruption."""

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from exp_tools.data.images.decode import ImageFault
from exp_tools.data.inputs.metadata import Vocabulary, encode
from exp_tools.data.labels.issues import Problem, write_report
from exp_tools.data.labels.select import as_task
from exp_tools.errors import UserError
from exp_tools.evaluation.predictions import prediction_table
from exp_tools.evaluation.probabilities import Calibration
from exp_tools.evaluation.report.build import score_set, with_metadata
from exp_tools.io import ProgressBar, file_digest, write_csv
from exp_tools.models.model_file import ModelFacts
from exp_tools.ood.judge import unlike_columns
from exp_tools.serving.batch_inputs import BatchInputs
from exp_tools.serving.batch_journal import BatchJournal, Result
from exp_tools.serving.predictor import Predictor
from exp_tools.serving.submission import check_submission, submission
from exp_tools.taxonomy import MELANOMA

AHEAD = 3
RESAMPLES = 2000


class Outcome(NamedTuple):
    """The result of a batch.

    predicted : rows of the table
    resumed : images that an earlier run had done
    problems : what was fixed, and what could not be used and why
    report : scores of the images with a diagnosis that the model knows, see score_set; None without any
    left_out : how many images of other diagnoses were not scored
    torn : how many images were not scored since their lesion has several diagnoses
    """

    predicted: int
    resumed: int
    problems: list[Problem]
    report: dict[str, Any] | None
    left_out: dict[str, int]
    torn: int


def predict_batch(
    predictor: Predictor, work: BatchInputs, out: Path, *, batch_size: int = 32, threads: int, isic: bool = False
) -> Outcome:
    """Predict a list of images into a table, which `exp-tools score` reads where the diagnoses are known.

    Parameters
    ----------
    predictor : the model
    work : the images
    out : the table to write: the columns of a prediction table (split `batch`, dx "" where nothing is known), then
        abstain and melanoma (by the model's thresholds, empty where it has none), unlike_score, unlike_training and
        unlike_why (empty where the model file cannot tell) and file. Next to it
        <name>.problems.csv where there are problems, and while the batch runs a journal
    batch_size : images per forward pass
    threads : how many images are decoded at once; at most AHEAD + 1 batches wait in memory
    isic : write a submission to the ISIC challenge instead, see `submission`; the journal is the same for both

    Raises
    ------
    UserError : no image can be used, or a batch with another model left a journal for this table; as
        `check_submission`
    """
    facts, calibration = predictor.facts, predictor.calibration
    if isic:
        check_submission(facts.classes, work.files)
    numbers = _numbers(facts, work.labels)
    stamps = [[*_stamp(file), *row] for file, row in zip(work.files, numbers.tolist(), strict=True)]
    journal = BatchJournal(out, {"model": file_digest(predictor.path)})
    done = journal.read(work.files, stamps)
    resumed = len(done)
    rows = [row for row in range(len(work.files)) if row not in done]
    with (
        journal,
        ProgressBar(total=len(work.files), initial=resumed, desc="predict", unit="image", leave=False) as progress,
    ):
        for places, pixels, faults in _decoded(predictor, work.files, rows, batch_size, threads):
            new: dict[int, Result] = {row: [fault.kind, str(fault)] for row, fault in faults.items()}
            if places:
                logits, judged = predictor.outputs(np.stack(pixels), numbers[places])
                told = [[]] * len(places) if judged is None else judged.rows()
                new |= {row: [*one, *more] for row, one, more in zip(places, logits.tolist(), told, strict=True)}
            journal.add([(work.files[row], stamps[row], result) for row, result in new.items()])
            done |= new
            progress.update(len(new))
    bad = [row for row in sorted(done) if isinstance(done[row][0], str)]
    good = np.setdiff1d(np.arange(len(work.files)), bad)
    problems = work.problems + [_skipped(work.files[row], *done[row]) for row in bad]
    if not good.size:
        raise UserError(f"none of {len(bad):,} images can be used, the first is {problems[-len(bad)]}")
    labels, logits = work.labels.iloc[good], np.array([done[row][: len(facts.classes)] for row in good], np.float32)
    unlike = unlike_columns([done[row][len(facts.classes) :] for row in good])
    labels, *scored = _scored(labels, logits, facts)
    table = prediction_table(labels, "batch", logits, facts.classes, calibration, facts.prediction_sets)
    files = [work.files[row] for row in good]
    if isic:
        write_csv(out, submission(table, files, facts.classes, calibration))
    else:
        write_csv(out, table.assign(**_flags(logits, facts), **unlike, file=files))
    if problems:
        write_report(problems_file(out), problems)
    else:
        problems_file(out).unlink(missing_ok=True)
    journal.path.unlink()
    return Outcome(len(good), resumed, problems, *scored)


def problems_file(out: Path) -> Path:
    """Where the problems of a batch are listed."""
    return out.with_name(f"{out.stem}.problems.csv")


def _decoded(
    predictor: Predictor, files: list[str], rows: list[int], batch_size: int, threads: int
) -> Iterator[tuple[list[int], list[NDArray[np.uint8]], dict[int, ImageFault]]]:
    """Batches in order: rows, their squares, and the faults of the rows that have none."""
    pool = ThreadPoolExecutor(threads)
    waiting: deque[list[tuple[int, Future]]] = deque()
    try:
        for start in range(0, len(rows), batch_size):
            some = rows[start : start + batch_size]
            waiting.append([(row, pool.submit(predictor.prepare, Path(files[row]))) for row in some])
            if len(waiting) > AHEAD:
                yield _collected(waiting.popleft())
        while waiting:
            yield _collected(waiting.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def _collected(
    batch: list[tuple[int, Future]],
) -> tuple[list[int], list[NDArray[np.uint8]], dict[int, ImageFault]]:
    places, pixels, faults = [], [], {}
    for row, future in batch:
        try:
            pixels.append(future.result())
            places.append(row)
        except ImageFault as fault:
            faults[row] = fault
    return places, pixels, faults


def _scored(
    labels: pd.DataFrame, logits: NDArray[np.float32], facts: ModelFacts
) -> tuple[pd.DataFrame, dict[str, Any] | None, dict[str, int], int]:
    """The labels with `dx` in the model's classes, where it knows them; their scores; what was not scored, as Outcome.

    Images of a lesion with several of the model's classes are not scored: which is right nobody said.
    """
    given = labels[labels["dx"] != ""]
    try:
        known, left_out = as_task(given, facts.task, facts.classes)
    except UserError:  # it knows none of them
        return labels, None, given["dx"].value_counts().sort_index().to_dict(), 0
    labels = labels.assign(dx=known["dx"].reindex(labels.index).fillna(labels["dx"]))
    torn = known.groupby("lesion_id")["dx"].transform("nunique") > 1
    known = known[~torn]
    if known.empty:
        return labels, None, left_out, int(torn.sum())
    rows, calibration = labels.index.isin(known.index), Calibration.from_dict(facts.calibration)
    table = prediction_table(labels[rows], "batch", logits[rows], facts.classes, calibration, facts.prediction_sets)
    report = score_set(
        with_metadata(table, labels),
        facts.classes,
        calibration=calibration,
        thresholds=facts.thresholds,
        costs=None,
        set_coverage=facts.prediction_sets.get("coverage"),
        resamples=RESAMPLES,
        seed=0,
    )
    return labels, report, left_out, int(torn.sum())


def _flags(logits: NDArray[np.float32], facts: ModelFacts) -> dict[str, Any]:
    """Columns abstain and melanoma, as in a Prediction; "" where the model has no such threshold."""
    probabilities = Calibration.from_dict(facts.calibration).probabilities(logits)
    abstain, melanoma = facts.thresholds.get("abstain"), facts.thresholds.get("melanoma")
    flagged: Any = ""
    if melanoma is not None and MELANOMA in facts.classes:
        flagged = probabilities[:, facts.classes.index(MELANOMA)] >= melanoma
    return {"abstain": "" if abstain is None else probabilities.max(axis=1) < abstain, "melanoma": flagged}


def _numbers(facts: ModelFacts, labels: pd.DataFrame) -> NDArray[np.float32]:
    if facts.vocabulary is None:
        return np.zeros((len(labels), 3), dtype=np.float32)
    return encode(labels, Vocabulary.from_dict(facts.vocabulary))


def _stamp(file: str) -> list[int]:
    """How a file is recognised as unchanged."""
    try:
        found = os.stat(file)
    except OSError:
        return [0, 0]
    return [found.st_size, found.st_mtime_ns]


def _skipped(file: str, kind: str, rule: str) -> Problem:
    return Problem(kind, file, None, "", Path(file).name, rule, action="skipped")
