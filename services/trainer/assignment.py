"""The command line that the coordinator passes to the program of an attempt."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Assignment:
    """What a submitted program computes: one group of a job's plan, on how many workers, with which CPUs and GPUs."""

    tenant: str
    job: str
    attempt: int
    group: str
    workers: int
    cpus: float
    gpus: float

    def arguments(self) -> list[str]:
        """Return the command line of this assignment."""
        return [word for name, value in asdict(self).items() for word in (f"--{name}", str(value))]

    @classmethod
    def read(cls, arguments: Sequence[str] | None = None) -> Assignment:
        """Parse a command line, by default that of this process. Exits with a message if it is invalid."""
        parser = argparse.ArgumentParser(description=__doc__)
        for name in ("tenant", "job", "group"):
            parser.add_argument(f"--{name}", required=True)
        for name in ("attempt", "workers"):
            parser.add_argument(f"--{name}", type=int, required=True)
        for name in ("cpus", "gpus"):
            parser.add_argument(f"--{name}", type=float, required=True)
        return cls(**vars(parser.parse_args(arguments)))
