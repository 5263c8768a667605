"""The progress of training: a progress bar on a terminal, one line per epoch elsewhere."""

import sys
import time

from tqdm import tqdm

from exp_tools.params import TrainParams
from exp_tools.training.state import Progress, Scores


class TrainingReport:
    """Enter it around the epochs; silent in all processes but the first.

    Parameters
    ----------
    progress : how far the run is
    params : of the training
    steps : optimizer steps per epoch
    images : training images per epoch, of all processes
    shown : whether this process reports
    """

    def __init__(self, progress: Progress, params: TrainParams, *, steps: int, images: int, shown: bool) -> None:
        self.progress, self.params, self.images = progress, params, images
        self.lines = shown and not sys.stderr.isatty()
        self.first, self.start = len(progress.history), time.monotonic()
        self.bar = tqdm(
            total=params.epochs * steps,
            initial=steps * len(progress.history) + progress.step,
            desc="train",
            unit="step",
            disable=None if shown else True,
        )

    def __enter__(self) -> "TrainingReport":
        self.bar.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.__exit__(*error)

    def step(self) -> None:
        """One more optimizer step."""
        self.bar.update()

    def epoch(self, loss: float, scores: Scores) -> None:
        """The epoch that was just added to the history: its training loss and its scores on validation."""
        name, done = self.params.select_on, len(self.progress.history)
        self.bar.set_postfix({"loss": f"{loss:.3f}", f"val {name}": f"{scores[name]:.3f}"})
        if self.lines:
            each = (time.monotonic() - self.start) / (done - self.first)
            shown = dict.fromkeys(("loss", name, "balanced_accuracy"))
            found = ", ".join(f"{key.replace('_', ' ')} {scores[key]:.3f}" for key in shown)
            best = " (best)" if self.progress.best_epoch == done else ""
            print(
                f"epoch {done}/{self.params.epochs}: train loss {loss:.3f}; validation {found}{best}; "
                f"{self.images / each:,.0f} images/s, {tqdm.format_interval(each * (self.params.epochs - done))} left",
                flush=True,
            )
