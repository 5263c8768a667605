"""The model that is served, and how another takes its place while requests are answered."""

import logging
from collections.abc import Callable
from typing import Any

import anyio.to_thread

from exp_tools.errors import UserError
from exp_tools.io import file_sha256
from exp_tools.serving.api.limits import Gate, Limits
from exp_tools.serving.api.service import Service
from exp_tools.serving.predictor import Predictor
from exp_tools.system import give_back_memory

TIDY, TIDY_BUSY = 50, 200
"""Requests after which free memory is given back: when the last of them is answered, and under constant load."""
LOG = logging.getLogger("exp_tools.api")


class Serving:
    """The model in use, the request slots, and the threads that they are computed in.

    A request takes `current` once and asks nothing else, so that its numbers and its checksum are of one model.

    Raises
    ------
    UserError : the model gives NaN or infinite
    """

    def __init__(self, predictor: Predictor, limits: Limits) -> None:
        self.limits, self.gate = limits, Gate(limits)
        self.threads = anyio.CapacityLimiter(limits.at_once)
        self.untidy = 0
        self.reloads = {"loaded": 0, "unchanged": 0, "refused": 0}
        self.current = Service(predictor, limits)
        self.current.try_out()

    async def run(self, work: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
        """Do work in one of the threads, when one is free."""
        return await anyio.to_thread.run_sync(self._work, work, *arguments, limiter=self.threads)

    def _work(self, work: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
        try:
            return work(*arguments)
        finally:
            self.untidy += 1  # a count that another thread spoils now and then is good enough
            if self.untidy >= (TIDY if self.gate.inside <= 1 else TIDY_BUSY):
                self.untidy = 0
                give_back_memory()

    def reload(self) -> None:
        """Read the model file again and serve it, or keep the model and log why; requests in work keep theirs.

        For one thread at a time. Both models are in memory until the last request of the old one is answered.
        """
        path, before = self.current.predictor.path, self.current.served["sha256"]
        try:
            found = file_sha256(path)
            if found == before:
                self.reloads["unchanged"] += 1
                LOG.info("reload: the model file is unchanged, sha256 %s", before)
                return
            service = Service(Predictor(path, top_k=self.current.predictor.top_k), self.limits)
            service.try_out()
            if not found == service.served["sha256"] == file_sha256(path):
                raise UserError("the file was written while it was read; replace it by `mv`, then reload again")
        except Exception as error:  # whatever is wrong with the new file, the old model stays
            self.reloads["refused"] += 1
            reason = " ".join(str(error).split()) if isinstance(error, UserError | OSError) else type(error).__name__
            LOG.error("reload: %s; the model in use stays, sha256 %s", reason, before)
            return
        self.current = service
        self.reloads["loaded"] += 1
        LOG.info("reload: serving the new model, sha256 %s", found)
