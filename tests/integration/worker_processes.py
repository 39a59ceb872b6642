"""Processes of tests: some fork after heavy imports, others are the submissions of a coordinator."""

from __future__ import annotations

import multiprocessing
import subprocess
from collections.abc import Sequence
from multiprocessing.context import ForkServerContext

from services.trainer.cluster import Status
from tests.trainer_fakes import FakeCluster

# The fork server of a test run starts once, so it preloads the modules of all tests that use it.
_MODULES = ["tests.integration.test_retriever_kills", "tests.integration.test_training_workers"]


def process_context() -> ForkServerContext:
    """Return a context whose processes fork from a server that has imported the tests' modules."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_MODULES)
    return context


class Programs(FakeCluster):
    """Runs each submission as a process of this machine."""

    def __init__(self) -> None:
        super().__init__()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def submit(self, submission: str, command: Sequence[str], *, cpus: float = 0.0) -> None:
        super().submit(submission, command, cpus=cpus)
        if submission not in self.processes:
            self.processes[submission] = self.start(command)

    def start(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(command)

    def status(self, submission: str) -> Status:
        if submission in self.processes and (code := self.processes[submission].poll()) is not None:
            self.statuses[submission] = Status.FAILED if code else Status.ENDED
        return super().status(submission)

    def stop(self, submission: str) -> None:
        super().stop(submission)
        self.processes[submission].kill()
        self.processes[submission].wait()

    def close(self) -> None:
        for submission in self.processes:
            self.stop(submission)
