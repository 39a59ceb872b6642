"""The command line that the coordinator passes to the program of an attempt."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Assignment:
    """What a submitted program computes: one group of a job's plan, and the number of its workers.

    workers, max_workers: the minimum and maximum number of workers. cpus, gpus: number for each worker. request_id:
    id for the logs.
    """

    tenant: str
    job: str
    attempt: int
    group: str
    workers: int
    max_workers: int
    cpus: float
    gpus: float
    request_id: str = ""

    @property
    def distributed(self) -> bool:
        """Whether Ray Train starts the workers. If not, the submitted program itself is the only worker."""
        return self.max_workers > 1 or self.gpus > 0

    @property
    def environment(self) -> dict[str, str]:
        """Variables that numpy and torch read at import. They hide all GPUs from workers that reserve none."""
        hidden = {} if self.gpus else {"CUDA_VISIBLE_DEVICES": ""}
        return {"OMP_NUM_THREADS": str(max(1, int(self.cpus))), **hidden}

    def arguments(self) -> list[str]:
        """Return the command line of this assignment."""
        return [word for name, value in asdict(self).items() for word in (f"--{name}", str(value))]

    @classmethod
    def read(cls, arguments: Sequence[str] | None = None) -> Assignment:
        """Parse a command line, by default that of this process. Exits with a message if it is invalid."""
        parser = argparse.ArgumentParser(description=__doc__)
        for name in ("tenant", "job", "group"):
            parser.add_argument(f"--{name}", required=True)
        for name in ("attempt", "workers", "max_workers"):
            parser.add_argument(f"--{name}", type=int, required=True)
        for name in ("cpus", "gpus"):
            parser.add_argument(f"--{name}", type=float, required=True)
        parser.add_argument("--request_id", default="")
        return cls(**vars(parser.parse_args(arguments)))
