"""The command line that the coordinator passes to the program of an attempt."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import get_type_hints


@dataclass(frozen=True)
class Assignment:
    """What a submission computes: one group of a job's plan, with `workers` to `max_workers` workers.

    cpus, gpus: what Ray reserves for each worker. request_id: id of the request that submitted the job, for logs.
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
    def ids(self) -> dict[str, object]:
        """The fields of log lines about this assignment."""
        return {"job_id": self.job, "attempt": self.attempt, "request_id": self.request_id}

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables that numpy and torch read at import. A worker that reserves no GPU sees no GPU."""
        hidden = {} if self.gpus else {"CUDA_VISIBLE_DEVICES": ""}
        return {"OMP_NUM_THREADS": str(max(1, int(self.cpus))), **hidden}

    def arguments(self) -> list[str]:
        """Return the command line that `read` parses into this assignment, such as ["--tenant", "default", …]."""
        return [word for name, value in asdict(self).items() for word in (f"--{name}", str(value))]

    @classmethod
    def read(cls, arguments: Sequence[str] | None = None) -> Assignment:
        """Return the assignment in a command line, by default in sys.argv. An invalid command line ends the process."""
        parser = argparse.ArgumentParser(description=__doc__)
        for name, kind in get_type_hints(cls).items():
            parser.add_argument(f"--{name}", type=kind, required=name != "request_id", default="")
        return cls(**vars(parser.parse_args(arguments)))
