"""Run a rival in its own process, so that each rival has its own environment."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from benchmarks.shared import ROOT, program
from benchmarks.training.training_data import threads


class RivalFailed(RuntimeError):
    """The rival's process ended without an answer. The reason is on standard error."""


class RivalProcess:
    """A process of a module that calls `serve`. It ends with the `with` block. folder: the checkout of the module."""

    def __init__(self, module: str, *arguments: object, env: Mapping[str, str], folder: Path = ROOT) -> None:
        command = program(f"training.{module}", *arguments)
        self._name = " ".join(command[2:])
        self._process = subprocess.Popen(
            command, cwd=folder, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, steps: int) -> float:
        """Return the real tokens per second of the next `steps` steps. Raises RivalFailed."""
        self.start(steps)
        return self.rate()

    def start(self, steps: int) -> None:
        """Start the next `steps` steps. `rate` waits for them. Raises RivalFailed."""
        assert self._process.stdin
        try:
            self._process.stdin.write(f"{steps}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise RivalFailed(f"{self._name} ended early. See its error on standard error.") from None

    def rate(self) -> float:
        """Return the real tokens per second of the steps that `start` started. Raises RivalFailed."""
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise RivalFailed(f"{self._name} ended early. See its error on standard error.")
        return float(line)

    def __enter__(self) -> RivalProcess:
        return self

    def __exit__(self, *_error: object) -> None:
        self._process.kill()
        self._process.communicate()


def serve(create: Callable[[], Callable[[int], float]]) -> None:
    """Create a rival. Run each number of steps that standard input names, and print the real tokens per second."""
    torch.set_num_threads(threads())
    run = create()
    for line in sys.stdin:
        print(run(int(line)), flush=True)
