"""What the coordinator tells an attempt's program, by its command line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Assignment:
    """The stages of one group of one job, and the workers that compute them, each with so many CPUs and GPUs."""

    tenant: str
    job: str
    attempt: int
    group: str
    workers: int
    cpus: float
    gpus: float

    def arguments(self) -> list[str]:
        """The command line that says it."""
        return [word for name, value in asdict(self).items() for word in (f"--{name}", str(value))]

    @classmethod
    def read(cls, arguments: Sequence[str] | None = None) -> Assignment:
        """What a command line says, by default this program's own. Exits with a message when it is none."""
        parser = argparse.ArgumentParser(description=__doc__)
        for name in ("tenant", "job", "group"):
            parser.add_argument(f"--{name}", required=True)
        for name in ("attempt", "workers"):
            parser.add_argument(f"--{name}", type=int, required=True)
        for name in ("cpus", "gpus"):
            parser.add_argument(f"--{name}", type=float, required=True)
        return cls(**vars(parser.parse_args(arguments)))
