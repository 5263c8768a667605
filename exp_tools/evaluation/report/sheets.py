"""Reporting sheets: what the pipeline knows of a study, item by item of a guideline; the rest is the author's.

Topics are named in our own words; the guidelines themselves say what each asks for. A filled line is a help for writing
and no claim that an item is fulfilled.

CLAIM 2024: Tejani et al., Radiology: Artificial Intelligence 6:e240300, 2024. TRIPOD+AI: Collins et al., BMJ
385:e078378, 2024. CLEAR Derm: Daneshjou et al., JAMA Dermatology 158:90, 2022.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from exp_tools.errors import UserError
from exp_tools.evaluation.metrics.subgroups import NOT_COMPARED
from exp_tools.evaluation.report.model_card_tables import table
from exp_tools.evaluation.report.numbers import interval, number
from exp_tools.models.model_file import ModelFacts
from exp_tools.taxonomy import is_drawn

AUTHOR = "**author**"


class Sheet(NamedTuple):
    """A guideline: its name, and (item, topic, what is known) where `{name}` stands for `known_facts` of that name."""

    title: str
    items: tuple[tuple[str, str, str], ...]


SPLIT = "{flow} {parts} {leak}"
UNCERTAINTY = (
    "95 % intervals by a bootstrap of lesions ({resamples} of params.yaml); their coverage: docs/evaluation.md."
)
TRAINING = "{training} Best {step} {epoch} by {select_on} on validation. Every parameter is in the model card."
CODE = "`dvc repro` in the commit of this project makes every number again; versions are in requirements.lock."
SHEETS = {
    "claim": Sheet(
        "CLAIM 2024",
        (
            ("1", "title names the AI technique", "{architecture}, a convolutional network"),
            ("2", "structured abstract", ""),
            ("3", "background and clinical role", ""),
            ("4", "aims and hypotheses", ""),
            ("5", "prospective or retrospective", ""),
            ("6", "goal of the study", ""),
            ("7", "data sources", "{source}; see docs/data.md for origin and licence"),
            ("8", "inclusion and exclusion", "{flow}"),
            ("9", "preprocessing", "{input}"),
            ("10", "choice of data subsets", "{subset}"),
            ("11", "de-identification", ""),
            ("12", "missing data", "{missing}"),
            ("13", "image acquisition", ""),
            ("14", "reference standard", "{confirmed}"),
            ("15", "why this reference standard", ""),
            ("16", "who annotated", ""),
            ("17", "annotation of the test set", "{confirmed}"),
            ("18", "variability of annotators", ""),
            ("19", "how data were partitioned", SPLIT),
            ("20", "level at which partitions are disjoint", "Lesion. {patients}"),
            ("21", "intended sample size", "{enough}"),
            ("22", "the model in detail", "{model}"),
            ("23", "software and libraries", "{versions}"),
            ("24", "starting weights", "{weights}"),
            ("25", "training", TRAINING),
            ("26", "how the final model was chosen", "Best {step} by {select_on} on validation. {many}"),
            ("27", "ensembling", "None: one network."),
            ("28", "performance metrics", "{metrics}"),
            ("29", "significance and uncertainty", UNCERTAINTY),
            ("30", "robustness and sensitivity", "{subgroups}"),
            ("31", "explainability", "Heat maps and their randomisation test: metrics/explain.json, plots/explain."),
            ("32", "internal evaluation", "{result}"),
            ("33", "external evaluation", "{external}"),
            ("34", "trial registration", ""),
            ("35", "flow of participants", "{flow} {parts}"),
            ("36", "demographics of each partition", "{demographics}"),
            ("37", "performance on the test partition", "{result}"),
            ("38", "diagnostic accuracy with precision", "{melanoma}"),
            (
                "39",
                "failures",
                "mistakes.png and missed_melanomas.png, confusion matrix in the card. {missed}",
            ),
            ("40", "limitations", "{limits}"),
            ("41", "implications for practice", "None: research and teaching only, not a medical device."),
            ("42", "protocol", ""),
            ("43", "access to software, model and data", CODE),
            ("44", "funding", ""),
        ),
    ),
    "tripod": Sheet(
        "TRIPOD+AI",
        (
            ("1", "title", ""),
            ("2", "abstract", ""),
            ("3a", "context and existing models", ""),
            ("3b", "target population and users", ""),
            ("3c", "known inequalities", ""),
            ("4", "objectives", ""),
            ("5a", "data sources", "{source}"),
            ("5b", "dates", ""),
            ("6a", "setting and centres", ""),
            ("6b", "eligibility", "{flow}"),
            ("6c", "treatments", ""),
            ("7", "data preparation", "{input}"),
            ("8a", "outcome", "{task}"),
            ("8b", "who assessed the outcome", "{confirmed}"),
            ("8c", "blinding of that assessment", ""),
            ("9a", "choice of predictors", ""),
            ("9b", "predictors", "The dermoscopic image; metadata: {metadata}"),
            ("9c", "who assessed predictors", ""),
            ("10", "sample size", "{enough}"),
            ("11", "missing data", "{missing}"),
            ("12a", "use of the data", SPLIT),
            ("12b", "handling of predictors", "{input}"),
            ("12c", "type and building of the model", "{model} " + TRAINING),
            ("12d", "heterogeneity between clusters", "{subgroups}"),
            ("12e", "performance measures", "{metrics}"),
            ("12f", "updating of the model", "{calibration}"),
            ("12g", "how predictions are calculated", "{calibration}"),
            ("13", "class imbalance", "{imbalance}"),
            ("14", "fairness", "{subgroups}"),
            ("15", "output of the model", "Probabilities of {classes}; {decision}"),
            ("16", "differences of training and evaluation data", "{external}"),
            ("17", "ethical approval", ""),
            ("18a", "funding", ""),
            ("18b", "conflicts of interest", ""),
            ("18c", "protocol", ""),
            ("18d", "registration", ""),
            ("18e", "data sharing", "{source}; see docs/data.md"),
            ("18f", "code sharing", CODE),
            ("19", "patients and public", ""),
            ("20a", "flow of participants", "{flow} {parts}"),
            ("20b", "characteristics", "{demographics}"),
            ("20c", "development against evaluation data", "{demographics}"),
            ("21", "participants and outcomes in each analysis", "{parts}"),
            ("22", "the full model", "models/model.safetensors: weights, preprocessing, calibration and thresholds"),
            ("23a", "performance", "{result} {melanoma}"),
            ("23b", "heterogeneity of performance", "{subgroups}"),
            ("24", "updated models", ""),
            ("25", "interpretation", ""),
            ("26", "limitations", "{limits}"),
            ("27a", "poor or missing input in use", "{missing}"),
            ("27b", "interaction and expertise of users", ""),
            ("27c", "next steps", ""),
        ),
    ),
    "clear": Sheet(
        "CLEAR Derm (topics of its four parts; its paper has the numbers and the wording)",
        (
            ("data", "type of images", "Dermoscopic images, {source}"),
            ("data", "artefacts in images", ""),
            ("data", "acquisition", ""),
            ("data", "preprocessing", "{input}"),
            ("data", "synthetic images", "{drawn}"),
            ("data", "public images", "{source}"),
            ("data", "metadata of patients", "{demographics}"),
            ("data", "skin tone", "Not recorded in this set: nothing is known of dark skin."),
            ("data", "bias from metadata", "{metadata}"),
            ("data", "partitions", SPLIT),
            ("data", "sizes of the partitions", "{parts}"),
            ("data", "external test set", "{external}"),
            ("data", "several images of a lesion", "Averaged by lesion beside the scores by image. {patients}"),
            ("data", "distribution of classes", "{imbalance}"),
            ("technique", "how labels were made", "{confirmed}"),
            ("technique", "labels in accepted terms", "{classes}"),
            ("technique", "histopathology of malignant lesions", "{confirmed}"),
            ("technique", "development of the algorithm", "{model} " + TRAINING),
            ("technique", "access to the algorithm", CODE),
            ("assessment", "performance", "{result} {melanoma}"),
            ("assessment", "benchmarks", "{baseline}"),
            ("assessment", "bias", "{subgroups}"),
            ("application", "intended use", "Research and teaching only, not a medical device."),
            ("application", "conditions it was not made for", "It names one of {classes} for every image of anything."),
            ("application", "effect on patients and teams", ""),
        ),
    ),
}


def reporting_sheet(name: str, facts: ModelFacts, report: Mapping[str, Any]) -> str:
    """A guideline's items with what is known of the model and its evaluation.

    Parameters
    ----------
    name : of SHEETS
    facts : of the model file
    report : metrics/report.json

    Returns
    -------
    Markdown; AUTHOR stands where only the author knows

    Raises
    ------
    UserError : there is no such sheet
    """
    if name not in SHEETS:
        raise UserError(f"there is no reporting sheet {name!r}; choose of {', '.join(SHEETS)}")
    sheet, known = SHEETS[name], known_facts(facts, report)
    rows = [(item, topic, text.format(**known).strip() or AUTHOR) for item, topic, text in sheet.items]
    open_items = sum(text == AUTHOR for *_, text in rows)
    return "\n".join(
        [
            f"# Reporting sheet after {sheet.title}",
            "",
            f"{len(rows) - open_items} of {len(rows)} lines hold what the pipeline knows, {open_items} are for the "
            "author; all are to be checked by the author. This is a help for writing, not a statement that the "
            "guideline is met.",
            "",
            *table(("item", "topic", "known"), rows),
            "",
        ]
    )


def known_facts(facts: ModelFacts, report: Mapping[str, Any]) -> dict[str, str]:
    """What the sheets may name; "" where it is unknown."""
    test, training = report["test"], facts.training
    people = test.get("participants") or {"flow": {}, "splits": {}}
    melanoma, metrics = test["melanoma"], test["metrics"]
    confirmed = {row["value"]: row["images"] for row in test["subgroups"] if row["attribute"] == "dx_type"}
    gaps = [gap for gap in test.get("gaps", []) if gap["clear"]]
    flow = people["flow"]
    seen = training.get("parameters", {})
    trials = (test.get("validation") or {}).get("trials", 1)
    external = {name: one["metrics"]["balanced_accuracy"] for name, one in report["external"].items()}
    return {
        "architecture": facts.architecture,
        "source": f"`{facts.source}`",
        "drawn": "All images are drawn by a program." if is_drawn(facts.source) else "None.",
        "input": facts.input,
        "task": f"{facts.task}: {', '.join(facts.classes)}",
        "classes": ", ".join(facts.classes),
        "metadata": "age, sex and body site" if facts.vocabulary else "none: the image alone",
        "weights": f"{training.get('weights', 'unknown')}",
        "step": facts.chosen_among,
        "epoch": f"{training.get('best_epoch', '–')} of {training.get('epochs_run', '–')}",
        "select_on": str(training.get("select_on", "–")),
        "training": ", ".join(
            f"{name} {seen[name]}" for name in ("optimizer", "lr", "batch_size", "loss", "sampler") if name in seen
        )
        + ".",
        "model": f"{facts.architecture}: {facts.described}.",
        "versions": ", ".join(f"{key} {value}" for key, value in facts.versions.items()),
        "calibration": f"Probabilities: softmax(logits / {facts.calibration['temperature']:.3f} + bias), fitted on "
        "validation.",
        "decision": f"decision rule {facts.calibration['decide']}",
        "flow": f"{flow['read']:,} rows read, {flow['left_out']:,} left out, {flow['images']:,} images."
        if flow
        else "",
        "parts": _parts(people["splits"]),
        "leak": f"LEAKY: split by image, {people['leak']:,} test images show a lesion of train."
        if people.get("leak")
        else "Split by lesion with its near-duplicates; nothing of a lesion is in two parts.",
        "demographics": "Age, sex, body site and class of each part: table `Whose images` of the model card."
        if people["splits"]
        else "",
        "subset": "All images that could be read." if flow and not flow["unused"] else "",
        "missing": "Unknown age, sex and site are counted in the card; a network with metadata has a value for it.",
        "confirmed": ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in confirmed.items())
        + (" of the test images" if confirmed else ""),
        "patients": "Most sources have no patient ids: lesions of one patient may be in two parts.",
        "enough": "Lesions by class are in the card, which says for which classes they suffice.",
        "imbalance": ", ".join(f"{code} {count:,}" for code, count in test["counts"].items())
        + f" test images; sampler {seen.get('sampler', '–')}, class weights {seen.get('class_weights', '–')}",
        "metrics": "Balanced accuracy, accuracy, macro F1, macro AUC, MCC, calibration, net benefit: the model card.",
        "result": f"Balanced accuracy {number(metrics['balanced_accuracy'])} "
        f"({interval(test['intervals']['balanced_accuracy'])}), macro AUC {number(metrics['macro_auc'])} "
        f"({interval(test['intervals']['macro_auc'])}) on {test['images']:,} images of {test['lesions']:,} lesions.",
        "melanoma": ""
        if not melanoma
        else f"Melanoma: AUC {number(melanoma['auc'])} ({interval(melanoma['intervals']['auc'])}), sensitivity "
        f"{number(melanoma['sensitivity'])}, specificity {number(melanoma['specificity'])} at the model's threshold.",
        "missed": f"{melanoma['missed_images']:,} of {melanoma['melanomas']:,} melanoma images missed."
        if melanoma
        else "",
        "baseline": ""
        if "baseline" not in test
        else f"Mean colours alone: balanced accuracy {number(test['baseline']['balanced_accuracy'])}.",
        "subgroups": f"Scores by {_scored_by(test['subgroups'])}; {len(gaps)} gaps are more than chance.",
        "external": "; ".join(f"{name}: balanced accuracy {number(score)}" for name, score in external.items()),
        "limits": "Section `Limits` of the model card.",
        "many": (f"It is the best of {trials:,} settings that were tried there. " if trials > 1 else "")
        + "`exp-tools card --commit` says how many models were scored on this test split.",
        "resamples": "`evaluate.resamples`",
    }


def _scored_by(subgroups: Sequence[Mapping[str, Any]]) -> str:
    """The attributes that are scored apart, as words: `sex, age and source`."""
    names = dict.fromkeys(row["attribute"] for row in subgroups if row["attribute"] not in ("all", NOT_COMPARED))
    *most, last = ["body site" if name == "localization" else name.replace("_", " ") for name in names] or ["nothing"]
    return f"{', '.join(most)} and {last}" if most else last


def _flow(flow: Mapping[str, Any]) -> str:
    if not flow:
        return ""
    return f"{flow['read']:,} rows read, {flow['left_out']:,} left out, {flow['images']:,} images."


def _parts(splits: Mapping[str, Any]) -> str:
    words = (f"{name}: {part['images']:,} images of {part['lesions']:,} lesions" for name, part in splits.items())
    return "; ".join(words) + "." if splits else ""
