"""What a search ends with: its trials, what they say of the parameters, and how to go on from the best."""

import shlex
import warnings
from typing import Any

import matplotlib.pyplot as plt
import optuna

from exp_tools.evaluation.plots.style import save_figure
from exp_tools.io import atomic_write, write_csv
from exp_tools.studies.space import Space
from exp_tools.studies.tune import table_of

FEWEST = 5
"""Finished trials from which on it is said which parameters matter."""


def write_search(space: Space, search: Any) -> list[str]:
    """Write `studies/NAME`: trials.csv, README.md, history.png and, with enough trials, importance.png; their names."""
    space.folder.mkdir(parents=True, exist_ok=True)
    table = table_of(search)
    write_csv(space.folder / "trials.csv", table)
    with atomic_write(space.folder / "README.md") as temporary:
        temporary.write_text(_statement(space, search), encoding="utf-8")
    return ["README.md", "trials.csv", *_pictures(space, search)]


def best_trials(search: Any) -> list[Any]:
    """The best trial; of two scores those that no other beats in both. Empty where none ended well."""
    return [trial for trial in search.best_trials if trial.values]


def _statement(space: Space, search: Any) -> str:
    states = [trial.state.name.lower() for trial in search.trials]
    counts = ", ".join(f"{states.count(state)} {state}" for state in ("complete", "pruned", "fail") if state in states)
    scores = space.content.scores
    lines = [
        f"# Search {space.name}",
        "",
        f"{len(states)} trials ({counts}), chosen by {' and '.join(scores)} on validation; the test split was not",
        f"read. The best of {states.count('complete')} flatters itself: quote the test score of one run of it, and say",
        "how many trials there were.",
        "",
    ]
    tried = max(1, states.count("complete") + states.count("pruned"))
    for trial in best_trials(search):
        found = ", ".join(f"{name} {value:.4f}" for name, value in zip(scores, trial.values, strict=True))
        lines += [
            f"## Trial {trial.number}: {found}",
            "",
            *(f"- `{key}`: {value}" for key, value in trial.params.items()),
            "",
            "Run it to the end:",
            "",
            "```bash",
            f"dvc exp run -n {space.name}-best "
            + _shell([*space.words(trial.params), "-S", f"evaluate.trials={tried}"]),
            "```",
            "",
        ]
    if failed := [trial for trial in search.trials if "reason" in trial.user_attrs]:
        lines += ["Failed:", "", *(f"- trial {trial.number}: {trial.user_attrs['reason']}" for trial in failed)]
    return "\n".join(lines).rstrip() + "\n"


def _shell(words: list[str]) -> str:
    pairs = [f"-S {shlex.quote(value)}" for value in words[1::2]]
    return " \\\n    ".join(pairs)


def _pictures(space: Space, search: Any) -> list[str]:
    complete = [trial for trial in search.trials if trial.state == optuna.trial.TrialState.COMPLETE]
    if len(space.content.scores) > 1 or not complete:
        return []
    draw = optuna.visualization.matplotlib
    drawn = {"history.png": draw.plot_optimization_history}
    if len(complete) >= FEWEST and len(space.content.space) > 1:
        drawn["importance.png"] = draw.plot_param_importances
    for name, make in drawn.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that this part of Optuna is experimental
            axes = make(search)
        axes.figure.set_layout_engine("constrained")
        save_figure(axes.figure, space.folder / name)
        plt.close(axes.figure)
    return list(drawn)
