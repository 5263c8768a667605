"""A study as a job array for Slurm: each task runs one member."""

import shlex
import sys
from pathlib import Path

from exp_tools.project import RUNS_FOLDER
from exp_tools.studies.plan import Member, Study

MARK = "# Written by exp-tools study --slurm, which replaces it"
"""A line by which the script is known."""
SCRIPT = """\
#!/bin/bash
{mark}
#SBATCH --job-name={name}
#SBATCH --array=0-{last}%{jobs}
#SBATCH --nodes=1 --ntasks=1 --cpus-per-task=8
#SBATCH --time=12:00:00 --signal=B:USR1@180
#SBATCH --requeue --open-mode=append --output={logs}/slurm-%a.log
# One GPU per task: add `#SBATCH --gpus-per-task=1`. Times and cores are guesses: change them. A task whose time is up
# (USR1) is repeated and goes on from its saved state. One that is cancelled (TERM) saves its state and ends.
# Afterwards: {python} -m exp_tools.cli study {file}

cd {root} || exit 1
members=({members})
{python} -m exp_tools.cli study {file} --member "${{members[$SLURM_ARRAY_TASK_ID]}}" &
member=$!
trap 'again=1; kill -TERM "$member"' USR1
trap 'kill -TERM "$member"' TERM
while wait "$member"; status=$?; kill -0 "$member" 2>/dev/null; do :; done  # a signal ends `wait`, and may come again
if [ -n "$again" ]; then
    scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID"
fi
exit "$status"
"""


def array_script(study: Study, members: list[Member], jobs: int) -> str:
    """The text of a script for `sbatch`, with a task for each of the members, `jobs` of them at a time."""
    logs = str(log_folder(study).resolve()).replace("%", "%%")  # % begins what Slurm fills in
    return SCRIPT.format(
        mark=MARK,
        name=study.name,
        logs=shlex.quote(logs),
        last=len(members) - 1,
        jobs=jobs,
        root=shlex.quote(str(study.root.resolve())),
        file=shlex.quote(str(study.file.resolve())),
        python=shlex.quote(sys.executable),
        members=" ".join(shlex.quote(member.name) for member in members),
    )


def log_folder(study: Study) -> Path:
    """Where the tasks write their logs. It must be there before: Slurm makes no folder."""
    return study.root / RUNS_FOLDER / "studies" / study.name
