"""Predictions and batches in words, for a terminal."""

from pathlib import Path

from exp_tools.models.artifact import ModelFacts
from exp_tools.serving.batch import Outcome, problems_file
from exp_tools.serving.predictor import DISCLAIMER, Prediction, name_of

BAR = 24
SHOWN = 10


def model_line(model: Path, facts: ModelFacts) -> str:
    """Which model speaks and what it was trained on."""
    drawn = ": drawn images, so what it says means nothing on real skin" if facts.source == "synthetic" else ""
    return f"model: {model} ({facts.architecture}), trained on {facts.source}{drawn}"


def prediction_text(prediction: Prediction, facts: ModelFacts) -> str:
    """The diagnosis, every class from the most probable on, what the thresholds say, notes and the disclaimer."""
    share = f"{100 * prediction.probability:.1f} %"
    description = f": {prediction.description}" if prediction.description else ""
    lines = [f"{prediction.name} ({prediction.diagnosis}), {share}{description}", ""]
    width = max(len(code) for code in prediction.probabilities)
    names = max(len(name_of(code)) for code in prediction.probabilities)
    for code, probability in sorted(prediction.probabilities.items(), key=lambda item: -item[1]):
        bar = "#" * round(BAR * probability)
        lines.append(f"{code:<{width}}  {name_of(code):<{names}}  {100 * probability:>5.1f} %  {bar}".rstrip())
    lines.append("")
    if prediction.melanoma is not None:
        limit = f"{100 * facts.thresholds['melanoma']:.1f} %"
        flagged = f"flagged, from {limit} on" if prediction.melanoma else f"not flagged, which begins at {limit}"
        lines.append(f"melanoma: {100 * prediction.melanoma_probability:.1f} %, {flagged}")
    if prediction.abstain:
        lines.append(f"too uncertain to use: below {100 * facts.thresholds['abstain']:.1f} % it is left to a human")
    lines += [f"note: {note}" for note in prediction.notes]
    return "\n".join([*lines, prediction.disclaimer])


def outcome_text(outcome: Outcome, out: Path) -> str:
    """How many images were predicted and where it stands, what was bad, and the disclaimer; scores are left out."""
    resumed = f", {outcome.resumed:,} of them by the run before" if outcome.resumed else ""
    lines = [f"{out}: {outcome.predicted:,} images predicted{resumed}"]
    if outcome.problems:
        skipped = sum(problem.action == "skipped" for problem in outcome.problems)
        lines.append(
            f"{skipped:,} left out, {len(outcome.problems) - skipped:,} put right or noted: {problems_file(out)}"
        )
        lines += [f"  {problem} ({problem.action})" for problem in outcome.problems[:SHOWN]]
        if len(outcome.problems) > SHOWN:
            lines.append(f"  … and {len(outcome.problems) - SHOWN:,} more")
    if outcome.left_out:
        counts = ", ".join(f"{code} {count:,}" for code, count in outcome.left_out.items())
        lines.append(f"not scored, since the model does not know them: {counts}")
    return "\n".join([*lines, DISCLAIMER])
