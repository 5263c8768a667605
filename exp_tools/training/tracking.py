"""Log the curves of a training run with DVCLive; no other module imports it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dvclive import Live
from scmrepo.exceptions import SCMError

from exp_tools.errors import UserError


@contextmanager
def track(folder: Path) -> Iterator[Live]:
    """Record into `folder`: metrics.json and a TSV per curve. DVC itself owns dvc.yaml, reports and the experiment.

    Raises UserError in a Git repository without a commit.
    """
    try:
        live = Live(str(folder), dvcyaml=None, report=None, save_dvc_exp=False)
    except SCMError as error:
        raise UserError(
            f"Git has no commit to which the training curves could belong ({error}). Make one, then run the same "
            "command again: git add -A && git commit -m start"
        ) from error
    with live:
        yield live


def log_epoch(live: Live, epoch: int, scores: dict[str, float]) -> None:
    """Record the scores of one epoch (from 1), rounded so that the files stay small and readable."""
    live.step = epoch
    for name, value in scores.items():
        live.log_metric(name, round(float(value), 6))
    live.make_summary()
