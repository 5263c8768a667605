"""The model card: what a model is, its intended use, its results, its limits, and how to reproduce it.

After Mitchell et al., Model Cards for Model Reporting, FAT* 2019. Everything in it comes from the model file and the
report, so that the same inputs give the same card; Git adds who and when (`exp-tools card --commit`).
"""

from collections.abc import Mapping
from typing import Any

import yaml

from exp_tools.evaluation.metrics.bootstrap import SMALL_GROUPS
from exp_tools.evaluation.metrics.subgroup_scores import ATTRIBUTES, UNKNOWN
from exp_tools.evaluation.report import model_card_sets, model_card_tables, model_card_use
from exp_tools.evaluation.report.model_card_tables import table
from exp_tools.evaluation.report.numbers import UNDEFINED, interval, number
from exp_tools.evaluation.report.original_labels import original_labels_section
from exp_tools.evaluation.report.robustness import disturbed
from exp_tools.evaluation.unlike import unlike_section
from exp_tools.models.model_file import ModelFacts
from exp_tools.taxonomy import is_drawn

DECISIONS = {
    "frequent": "the most probable class",
    "balanced": "the class with the highest probability over a power of its share in train, for balanced accuracy; the "
    "power was chosen on validation",
    "costs": "the class of least expected cost",
}


def model_card(facts: ModelFacts, report: Mapping[str, Any], digests: Mapping[str, str]) -> str:
    """Write the card.

    Parameters
    ----------
    facts : of the model file
    report : {"test": ..., "external": {name: ...}}, each as `build.score_set` gives it, read from JSON or not; the
        test set may have `baseline` (headline metrics of the colour baseline), `tta` and `robustness`, an external set
        `left_out`
    digests : path -> MD5 of the files that the results come from

    Returns
    -------
    Markdown, without commit and without date
    """
    test = report["test"]
    parts = [
        *_head(facts, test),
        *_model(facts, test),
        *_use(),
        *_data(facts, test),
        *model_card_tables.results(test),
        *original_labels_section(test),
        *model_card_tables.classes(test),
        *model_card_tables.confusion(test),
        *model_card_tables.melanoma(facts, test),
        *model_card_use.prevalence(test),
        *model_card_tables.confidence(facts, test),
        *model_card_sets.prediction_sets(facts, report),
        *model_card_tables.subgroups(test),
        *disturbed(test),
        *model_card_tables.costs(test),
        *unlike_section(facts.ood, report),
        *model_card_tables.external(report["external"]),
        *_limits(facts, report),
        *_again(facts, digests),
    ]
    return "\n".join(parts).rstrip() + "\n"


def _leak(test: Mapping[str, Any]) -> int:
    """Test images whose lesion the model has seen."""
    return (test.get("participants") or {}).get("leak", 0)


def _head(facts: ModelFacts, test: Mapping[str, Any]) -> list[str]:
    name = facts.architecture
    if is_drawn(facts.source):
        title = f"# Model card: {name}, trained on synthetic images: no number here means anything for real skin"
    else:
        title = f"# Model card: {name}, trained on {facts.source}"
    return [
        title,
        "",
        "**Research and teaching only: not a medical device.** It must not be used to diagnose, to triage or to "
        "reassure anybody.",
        "",
        *(
            [
                f"**LEAKY: {_leak(test):,} of {test['images']:,} test images show a lesion that the model was trained "
                "on. Every score here is too good; they only show what such a leak is worth.**",
                "",
            ]
            if _leak(test)
            else []
        ),
        *(
            [
                "**Out of fold.** The members have trained on every image of this set, so none is left to test the "
                "ensemble. Every score here is of images as those members predict them that have not seen them; the "
                "ensemble itself averages more members. Calibration and thresholds were fitted on these same "
                "predictions, which flatters them a little. To test it: an external set.",
                "",
            ]
            if facts.training.get("ensemble_of") == "folds"
            else []
        ),
    ]


def _model(facts: ModelFacts, test: Mapping[str, Any]) -> list[str]:
    training = facts.training
    rows = [
        ("architecture", f"`{facts.architecture}`"),
        *_members(facts),
        ("input", facts.input),
        ("metadata", "age, sex and body site" if facts.vocabulary else "none: the image alone"),
        ("task", f"{facts.task}: {len(facts.classes)} classes"),
        ("starting weights", training.get("weights")),
        (
            f"best {facts.chosen_among}",
            f"{training['best_epoch']} of {training['epochs_run']}" if "best_epoch" in training else None,
        ),
        ("on validation", _validation(facts, test.get("validation"))),
        ("calibration", _calibration(facts)),
        ("decision", DECISIONS[facts.calibration["decide"]]),
    ]
    return ["## Model", "", *table(("what", "value"), [row for row in rows if row[1] is not None]), ""]


def _members(facts: ModelFacts) -> list[tuple[str, str]]:
    """The knobs of a network; of an ensemble what each member is."""
    if "ensemble_of" not in facts.training:
        return [("knobs", _pairs(facts.knobs))]
    if "members" not in facts.knobs:
        training = facts.training
        rows = [
            (f"member {place}", f"`{made['experiment']}`, seed {made['seed']}, {made['score']:.4f}")
            for place, made in enumerate(training["members"], 1)
        ]
        what = (
            f"the mean of the weights of {len(rows)} of {training['tried']} networks, chosen on validation by "
            f"{training['select_on']}: {training['score']:.4f}, and each alone as below"
        )
        return [("knobs", _pairs(facts.knobs)), ("what it is", what), *rows]
    rows = []
    for place, (made, built) in enumerate(zip(facts.training["members"], facts.knobs["members"], strict=True), 1):
        which = [f"`{made['experiment']}`: `{built['architecture']}` with {_pairs(built['knobs'])}"]
        which += [f"{name} {made[name]}" for name in ("seed", "fold") if made[name] is not None]
        rows.append((f"member {place}", ", ".join(which)))
    return [("what it does", f"the mean of the probabilities of {len(rows)} networks, calibrated again"), *rows]


def _validation(facts: ModelFacts, found: Mapping[str, Any] | None) -> str | None:
    """The score that chose the epoch, which flatters."""
    training = facts.training
    if not found or number(found["balanced_accuracy"]) == UNDEFINED or "epochs_run" not in training:
        return None
    trials = found.get("trials", 1)
    settings = f" of the best of {trials:,} settings that were tried" if trials > 1 else ""
    return (
        f"balanced accuracy {number(found['balanced_accuracy'])} ({interval(found)}): the best of "
        f"{training['epochs_run']} {facts.chosen_among}s{settings}, so it flatters; for choosing between runs, not for "
        "quoting"
    )


def _calibration(facts: ModelFacts) -> str:
    calibration = facts.calibration
    bias = ", ".join(f"{code} {value:+.2f}" for code, value in zip(facts.classes, calibration["bias"], strict=True))
    return f"softmax(logits / {calibration['temperature']:.3f} + bias); bias {bias}"


def _use() -> list[str]:
    return [
        "## Intended use",
        "",
        "- For: comparing methods, teaching, and finding out how such models fail.",
        "- For people who read the intervals and the limits below.",
        "- Not for: decisions about a person. It knows the classes below and nothing else, so it names one of them for "
        "every image, of healthy skin or of anything; some of these it flags, not all.",
        "",
    ]


def _data(facts: ModelFacts, test: Mapping[str, Any]) -> list[str]:
    training = facts.training.get("images")
    lines = ["## Data", ""]
    if is_drawn(facts.source):
        lines.append("The images are synthetic: drawn by a program, like dermoscopy, of no patient.")
    else:
        lines.append(f"Source `{facts.source}`; licence, origin and make-up are in `docs/data.md`.")
    if facts.training.get("ensemble_of") == "folds":
        lines.append(
            f"{test['images']:,} images of {test['lesions']:,} lesions, each in the training data of all members but "
            "those of one fold. No lesion is in two folds."
        )
        return [*lines, "", *model_card_use.participants(test)]
    trained = f"{training:,} images to train, " if training else ""
    by = "LEAKY, by image: lesions are in both." if _leak(test) else "by lesion: none is in both."
    lines.append(f"{trained}{test['images']:,} images of {test['lesions']:,} lesions to test. The split is {by}")
    return [*lines, "", *model_card_use.participants(test)]


def _limits(facts: ModelFacts, report: Mapping[str, Any]) -> list[str]:
    test = report["test"]
    lines = ["## Limits", ""]
    if is_drawn(facts.source):
        lines.append("- Trained and tested on synthetic images: it has never seen skin.")
    rare = [code for code, row in test["per_class"].items() if row["lesions"] < SMALL_GROUPS]
    if rare:
        lines.append(
            f"- Fewer than {SMALL_GROUPS} lesions to test of: {', '.join(rare)}. Little is known of these, "
            "and balanced accuracy and the other means over classes are as unsure as they are."
        )
    lines.append(model_card_use.sample_size(test))
    if not report["external"]:
        lines.append(
            "- Tested on the set it was trained on only (other lesions of it). With other cameras, clinics, skin types "
            "and ages it can do much worse."
        )
    groups = [row for row in test["subgroups"] if row["attribute"] != "all" and row["value"] != UNKNOWN]
    if small := [f"{row['value'].replace('_', ' ')}" for row in groups if row["small"]]:
        lines.append(f"- Subgroups of fewer than {SMALL_GROUPS} lesions: {', '.join(small)}.")
    confirmed = {row["value"]: row["images"] for row in test["subgroups"] if row["attribute"] == "dx_type"}
    if "histo" in confirmed:
        lines.append(
            f"- {confirmed['histo'] / test['images']:.0%} of the test labels were confirmed by histopathology; the "
            "others may be wrong more often."
        )
    lines.append(
        f"- The split is by {'image' if _leak(test) else 'lesion'}. Most sources, HAM10000 among them, have no patient "
        "ids: lesions of one patient may be in train and in test, which flatters."
    )
    further = dict.fromkeys(row["attribute"].replace("_", " ") for row in groups if row["attribute"] not in ATTRIBUTES)
    if further:
        lines.append(
            f"- Of skin type and ethnic origin nothing is known, except by what the subgroups tell of: "
            f"{', '.join(further)}."
        )
    else:
        lines.append("- Skin type and ethnic origin are not recorded, so nothing is known of how it does on dark skin.")
    return [*lines, ""]


def _again(facts: ModelFacts, digests: Mapping[str, str]) -> list[str]:
    training = facts.training
    recorded = ("precision", "device", "augment_on", "threads", "processes")
    made = {name: training[name] for name in recorded if name in training}
    same = "On the same kind of machine the files are the same:"
    if not training.get("parameters", {}).get("deterministic", True):
        same = (
            "This model was trained with `train.deterministic: false`: the same command gives another model, whose "
            "scores differ as those of another seed do. These are the files of this one:"
        )
    lines = [
        "## How to reproduce",
        "",
        f"`dvc repro` in the commit that this file belongs to. {same}",
        "",
        *table(("file", "MD5"), [(f"`{path}`", f"`{digest}`") for path, digest in digests.items()]),
        "",
    ]
    if training.get("parameters"):
        lines += ["Parameters of training:", "", "```yaml", _yaml(training["parameters"]), "```", ""]
    if made:
        lines.append(f"Made with {_pairs(made)}; {_pairs(facts.versions)}.")
    return lines


def _yaml(content: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(content), sort_keys=True, default_flow_style=False).rstrip()


def _pairs(content: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in content.items())
