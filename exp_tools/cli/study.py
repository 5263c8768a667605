"""Many experiments at once: a study of them, and one model of several."""

import argparse
import os
import shlex
from pathlib import Path

from exp_tools.cli.groups import Commands
from exp_tools.cli.outputs import holds, is_drawn_by_us, is_table, may_write, starts_with
from exp_tools.errors import Stopped, UserError, calling
from exp_tools.project import LABELS, RUNS_FOLDER, find_project

GROUP = "set up and train"


def add_commands(commands: Commands) -> None:
    """Add this group's commands."""
    study = commands.add(
        GROUP,
        "study",
        _study,
        "run settings x seeds x folds as a study file names them, and compare them; going on after any stop",
        "exp-tools study studies/attention.yaml --dry",
    )
    study.add_argument("file", type=Path, help="study file (docs/studies.md)")
    study.add_argument("-j", "--jobs", type=int, default=1, help="members at a time (default: 1)")
    study.add_argument("--dry", action="store_true", help="print the plan, what is done, and the hours left")
    study.add_argument("--retry", action="store_true", help="run those again that failed before")
    study.add_argument("--member", metavar="NAME", help="run this one only, and compare nothing")
    study.add_argument("--slurm", type=Path, metavar="FILE", help="write a job array for `sbatch` instead of running")

    ensemble = commands.add(
        GROUP,
        "ensemble",
        _ensemble,
        "make one model file of several experiments, which averages their probabilities",
        "exp-tools ensemble attention-attention-seed{0,1,2} --out models/attention.safetensors",
    )
    ensemble.add_argument(
        "experiments", nargs="+", metavar="EXP", help="experiment, branch, tag, commit or `workspace`"
    )
    ensemble.add_argument(
        "--soup",
        action="store_true",
        help="average the weights instead, into one network, of those members for which validation is no worse",
    )
    ensemble.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FILE.safetensors",
        help="model file; predictions and card go next to it",
    )

    tune = commands.add(
        GROUP,
        "tune",
        _tune,
        "search parameters on validation, with Optuna; the test split is not read",
        "exp-tools tune studies/search.yaml --trials 30",
    )
    tune.add_argument("file", type=Path, help="search space (docs/studies.md)")
    tune.add_argument("--trials", type=int, default=20, help="how many in all, earlier calls included (default: 20)")
    tune.add_argument("-j", "--jobs", type=int, default=1, help="trials at a time (default: 1)")


def _tune(options: argparse.Namespace) -> int:
    from exp_tools.studies.space import read_space
    from exp_tools.studies.tune import require_optuna, run_search

    if options.jobs < 1 or options.trials < 1:
        raise UserError("--trials and --jobs must be 1 or more")
    require_optuna()
    from exp_tools.studies.search_result import best_trials, write_search

    root = find_project(Path.cwd())
    space = read_space(options.file, root)
    may_write(space.folder / "README.md", starts_with(f"# Search {space.name}"))
    may_write(space.folder / "trials.csv", is_table("trial", "experiment", "state"))
    for name in ("history.png", "importance.png"):
        may_write(space.folder / name, is_drawn_by_us)
    try:
        search = run_search(space, trials=options.trials, jobs=options.jobs, say=lambda line: print(line, flush=True))
    except Stopped as stopped:
        print(stopped)
        return stopped.status
    written = write_search(space, search)
    for trial in best_trials(search):
        scores = ", ".join(
            f"{name} {value:.4f}" for name, value in zip(space.content.scores, trial.values, strict=True)
        )
        print(f"best: trial {trial.number}: {scores} on validation, not for quoting; {trial.params}")
    print(f"written: {space.folder.relative_to(root)}/{', '.join(written)}")
    return int(not best_trials(search))


def _ensemble(options: argparse.Namespace) -> int:
    from exp_tools.evaluation.predictions import ID_COLUMNS
    from exp_tools.io import file_digest, scratch_folder, write_csv
    from exp_tools.models.model_file import is_ensemble
    from exp_tools.params import PARAMS_FILE, load_params
    from exp_tools.studies.ensemble import card_of, make_ensemble
    from exp_tools.studies.soup import make_soup

    out: Path = options.out
    if out.suffix != ".safetensors":
        raise UserError(f"--out is {out}; name a file that ends with .safetensors")
    table, card = out.with_suffix(".csv"), out.with_suffix(".md")
    may_write(out, is_ensemble)
    # Without its model such a table is one of the pipeline, or of another command.
    predictions = is_table(*ID_COLUMNS)
    may_write(table, lambda path: out.is_file() and is_ensemble(out) and predictions(path))
    may_write(card, _is_card_of_members)
    root = find_project(Path.cwd())
    params = load_params(root / PARAMS_FILE)
    make = make_soup if options.soup else make_ensemble
    with scratch_folder(out.parent) as folder, calling(folder, out.parent):  # all three files or none
        new = folder / out.name
        made = make(options.experiments, new, root, params, root / RUNS_FOLDER / "models")
        write_csv(folder / table.name, made.predictions)
        text = card_of(made, {out.as_posix(): file_digest(new)}, root / LABELS, params)
        (folder / card.name).write_text(text, encoding="utf-8")
        for path in (out, table, card):
            os.replace(folder / path.name, path)
    members, validation = len(made.facts.training["members"]), made.facts.training["validation"]["balanced_accuracy"]
    on = (
        "of out-of-fold predictions, each by the members that have not seen the image"
        if made.folds > 1
        else "on validation"
    )
    print(f"{out}: {members} members; balanced accuracy {validation:.3f} {on}, not for quoting")
    if made.folds > 1:
        print("its members have trained on every image of this set: no test image is left, only external sets")
    print(f"written: {out}, {table.name} and {card.name} next to it")
    return 0


def _is_card_of_members(path: Path) -> bool:
    text = path.read_text(encoding="utf-8", errors="replace")
    return text.startswith("# Model card: ") and "| member 1 |" in text


def _study(options: argparse.Namespace) -> int:
    from exp_tools.evaluation.compare.render import as_text
    from exp_tools.studies.members import standing
    from exp_tools.studies.plan import read_study
    from exp_tools.studies.result import compare_study, write_study
    from exp_tools.studies.run import run_member, run_study

    if options.jobs < 1:
        raise UserError(f"--jobs is {options.jobs}; it must be 1 or more")
    root = find_project(Path.cwd())
    study = read_study(options.file, root)
    try:
        if options.member:
            end = run_member(study, study.member(options.member))
            print(f"{options.member}: {end.state}{': ' + end.reason if end.reason else ''}")
            return int(end.state != "done")
        if options.dry:
            print(_plan(study, standing(study, study.members), options.jobs))
            return 0
        if options.slurm:
            return _slurm(study, options)
        _may_write(study)
        now = run_study(study, jobs=options.jobs, retry=options.retry, say=lambda line: print(line, flush=True))
    except Stopped as stopped:
        print(stopped)
        return stopped.status
    failed = {name: one for name, one in now.items() if one.state != "done"}
    for name, one in failed.items():
        log = f"runs/studies/{study.name}/{name}.log; `--retry` runs it again"
        print(f"{name}: {one.state}: {one.reason} ({log if one.state == 'failed' else 'the same command tries again'})")
    found = compare_study(study, now)
    write_study(study, now, found)
    print(as_text(found).rstrip())
    print(f"written: {study.folder.relative_to(root)}/README.md, comparison.md, .csv, .tex, .png, members.csv")
    return int(bool(failed))


def _may_write(study) -> None:
    from exp_tools.studies.result import COPY

    folder = study.folder
    may_write(folder / "README.md", starts_with(f"# Study {study.name}"))
    may_write(folder / "comparison.md", starts_with("## Comparison"))
    may_write(folder / "comparison.csv", is_table("made_from", "metric", "verdict"))
    may_write(folder / "comparison.tex", holds(" 95 % intervals by lesion; differences from "))
    may_write(folder / "comparison.png", is_drawn_by_us)
    may_write(folder / "members.csv", is_table("experiment", "setting", "state"))
    if study.copy.resolve() != study.file.resolve():
        may_write(study.copy, starts_with(COPY))


def _plan(study, now, jobs: int) -> str:
    from exp_tools.studies.members import hours_left

    width = max(len(member.name) for member in study.members)
    lines = [
        f"{member.name:<{width}}  {now[member.name].state:<7}  {now[member.name].reason}".rstrip()
        for member in study.members
    ]
    counts = {
        state: sum(one.state == state for one in now.values()) for state in ("done", "running", "failed", "missing")
    }
    lines.append(", ".join(f"{count} {state}" for state, count in counts.items() if count))
    if counts["done"] < len(now):
        hours = hours_left(study, now)
        lines.append(
            "how long it takes is not known before one member has ended"
            if hours is None
            else f"about {hours / jobs:.1f} hours left, {jobs} at a time, as long as those that ended took"
        )
    return "\n".join(lines)


def _slurm(study, options: argparse.Namespace) -> int:
    from exp_tools.io import atomic_write
    from exp_tools.studies.members import standing
    from exp_tools.studies.run import require_data
    from exp_tools.studies.slurm import MARK, array_script, log_folder

    now = standing(study, study.members)
    members = [one for one in study.members if now[one.name].state in ("missing", "running", "failed")]
    if not members:
        again = f"exp-tools study {shlex.quote(str(options.file))}"
        raise UserError(f"all {len(now)} members are done: `{again}` compares them")
    require_data(study.root)
    may_write(options.slurm, holds(f"\n{MARK}\n"), inputs=(options.file,))
    with atomic_write(options.slurm) as temporary:
        temporary.write_text(array_script(study, members, options.jobs), encoding="utf-8")
    log_folder(study).mkdir(parents=True, exist_ok=True)
    print(f"written: {options.slurm}, {len(members)} tasks: sbatch {shlex.quote(str(options.slurm))}")
    return 0
