"""A rival in a process of its own, so that each has the environment that it is to be measured in."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from types import TracebackType

import torch

from benchmarks.shared import ROOT
from benchmarks.training.data import threads


class RivalDied(RuntimeError):
    """The rival's process ended before it had answered; what it said stands on standard error."""


class Apart:
    """`python -m MODULE ARGUMENTS…`, which answers as `answer` does. Ends with the `with` block it is used in."""

    def __init__(self, module: str, *arguments: str, env: Mapping[str, str]) -> None:
        command = [sys.executable, "-m", module, *arguments]
        self._name = " ".join(command[2:])
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, steps: int) -> float:
        """Real tokens a second over `steps` more steps. Raises RivalDied."""
        assert self._process.stdin and self._process.stdout
        try:
            self._process.stdin.write(f"{steps}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise RivalDied(self._name) from None
        answer = self._process.stdout.readline()
        if not answer:
            raise RivalDied(self._name)
        return float(answer)

    def __enter__(self) -> Apart:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()


def answer(make: Callable[[], Callable[[int], float]]) -> None:
    """Make a rival and, for each number of steps on standard input, run it and print its rate; until the input ends."""
    torch.set_num_threads(threads())
    run = make()
    for line in sys.stdin:
        print(run(int(line)), flush=True)
