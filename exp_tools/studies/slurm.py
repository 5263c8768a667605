"""A study as a job array for Slurm: each task runs one member."""

import shlex
import sys
from pathlib import Path

from exp_tools.studies.plan import Member, Study

SCRIPT = """\
#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --array=0-{last}%{jobs}
#SBATCH --nodes=1 --ntasks=1 --cpus-per-task=8
#SBATCH --time=12:00:00 --signal=B:TERM@180
#SBATCH --requeue --open-mode=append --output=runs/studies/{name}/slurm-%a.log
# One GPU per task: add `#SBATCH --gpus-per-task=1`. Times and cores are guesses: change them. A task that is stopped or
# whose host fails goes on from its saved state when it is repeated; a member that is done ends at once.
# Afterwards: {python} -m exp_tools.cli study {file}

cd {root} || exit 1
members=({members})
{python} -m exp_tools.cli study {file} --member "${{members[$SLURM_ARRAY_TASK_ID]}}" &
member=$!
trap 'stopped=1; kill -TERM "$member"' TERM
while wait "$member"; status=$?; kill -0 "$member" 2>/dev/null; do :; done  # a signal ends `wait`, and may come again
if [ -n "$stopped" ]; then  # the time is up and the state is saved: come back
    scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID"
fi
exit "$status"
"""


def array_script(study: Study, members: list[Member], jobs: int) -> str:
    """The text of a script for `sbatch`, with a task for each of the members, `jobs` of them at a time."""
    return SCRIPT.format(
        name=study.name,
        last=len(members) - 1,
        jobs=jobs,
        root=shlex.quote(str(study.root.resolve())),
        file=shlex.quote(str(study.file.resolve())),
        python=shlex.quote(sys.executable),
        members=" ".join(shlex.quote(member.name) for member in members),
    )


def make_log_folder(root: Path, study: Study) -> None:
    """Slurm makes no folder for a log."""
    (root / "runs" / "studies" / study.name).mkdir(parents=True, exist_ok=True)
