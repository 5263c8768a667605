"""Doubtful labels, for a person to decide on."""

import argparse
import shlex
from pathlib import Path

from exp_tools.cli.groups import Commands
from exp_tools.cli.outputs import is_drawn_by_us, is_table, may_write
from exp_tools.errors import UserError, did_you_mean
from exp_tools.project import IMAGES, LABEL_VERDICTS, LABELS, PREDICTIONS, find_project

GROUP = "evaluate and compare"
OUT = Path("doubtful_labels")


def add_commands(commands: Commands) -> None:
    """Add this group's commands."""
    labels = commands.add(
        GROUP,
        "labels",
        _labels,
        "rank lesions by how doubtful their label is, from out-of-fold predictions, as a table and contact sheets",
        "exp-tools labels folds-fold{0,1,2,3,4} --out doubtful_labels",
    )
    labels.add_argument(
        "experiments",
        nargs="*",
        metavar="EXP",
        help="the folds: experiment, branch, tag, commit, `workspace`, predictions.csv, or GROUP=EXP,EXP",
    )
    labels.add_argument("--study", metavar="NAME", help="instead all complete settings of a study (its name or file)")
    labels.add_argument("--out", type=Path, default=OUT, help=f"folder for table and sheets (default: {OUT})")
    labels.add_argument("--top", type=int, default=200, help="lesions on the sheets, at most (default: 200)")


def _labels(options: argparse.Namespace) -> int:
    from exp_tools.data.label_verdicts import read_label_verdicts
    from exp_tools.evaluation.label_doubt.rank import COLUMNS, rank_labels, require_cleanlab
    from exp_tools.evaluation.label_doubt.sheets import (
        PAGE,
        PAGES,
        RANKING,
        TO_JUDGE,
        given_diagnoses,
        how_to_judge,
        is_not_judged,
        packed_pictures,
        to_judge,
        write_proposal,
    )

    if bool(options.experiments) == bool(options.study):
        raise UserError("name the folds' experiments, or a study with --study NAME: one of the two")
    if options.top < 1:
        raise UserError(f"--top is {options.top}; it must be 1 or more")
    require_cleanlab()
    may_write(options.out / RANKING, is_table(*COLUMNS))
    may_write(options.out / TO_JUDGE, is_not_judged)
    for page in [options.out / PAGE.format(1), *sorted(options.out.glob(PAGES))]:
        may_write(page, is_drawn_by_us)
    from exp_tools.evaluation.label_doubt.out_of_fold import out_of_fold

    root = find_project(Path.cwd())
    verdicts = read_label_verdicts(root / LABEL_VERDICTS)
    words, remarks = (options.experiments, []) if options.experiments else of_study(options.study, root)
    table, classes, said = out_of_fold(words, root=root, predictions=str(PREDICTIONS))
    ranking = rank_labels(table, classes)
    chosen = to_judge(ranking, set(verdicts["image_id"]), options.top)
    pictures, diagnoses = packed_pictures(root / LABELS, root / IMAGES), given_diagnoses(root / LABELS)
    pages = write_proposal(options.out, ranking, chosen, pictures, diagnoses)
    lesions = ranking.drop_duplicates("lesion_id")
    print("\n".join([said, *remarks]))
    print(
        f"{lesions['likely_wrong'].sum():,} lesions have a label that cleanlab takes for likely wrong; the ranking: "
        f"{options.out / RANKING}"
    )
    sheets = f"{len(pages)} pages {options.out / 'labels_*.png'}" if pages else "no page"
    print(f"{len(chosen):,} lesions to look at, the most doubtful first: {sheets}")
    print(how_to_judge(options.out, LABEL_VERDICTS))
    return 0


def of_study(word: str, root: Path) -> tuple[list[str], list[str]]:
    """The complete settings of a study as GROUP=EXP,EXP, and what must be said of the others."""
    from exp_tools.studies.members import standing
    from exp_tools.studies.plan import OUTPUTS, read_study

    named = root / OUTPUTS / f"{word}.yaml"
    if not named.is_file() and not Path(word).is_file():
        known = sorted(path.stem for path in (root / OUTPUTS).glob("*.yaml"))
        raise UserError(
            f"there is no study {word!r}{did_you_mean(word, known)}; {OUTPUTS}/ has {', '.join(known) or 'none'}"
        )
    study = read_study(named if named.is_file() else Path(word), root)
    now = standing(study, study.members)
    words, remarks = [], []
    for setting in study.content.settings:
        members = study.of_setting(setting)
        done = [now[one.name].word for one in members if now[one.name].state == "done"]
        if len(done) == len(members):
            words.append(f"{setting}={','.join(done)}")
        else:
            remarks.append(f"{setting} left out: {len(done)} of {len(members)} members are done")
    if not words:
        rest = f"exp-tools study {shlex.quote(str(study.file))}"
        raise UserError(
            f"no setting of the study {study.name} is complete ({'; '.join(remarks)}): `{rest}` runs the rest"
        )
    return words, remarks
