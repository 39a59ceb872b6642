"""`python -m tests.chaos.soak [SECONDS]`: mixed jobs for a long time (default: 2 hours), without faults.

Four of five jobs are of the kind `chaos`, whose stages count. One of five trains an encoder of two layers.
It fails if, in the second half, the memory or the file handles of a process grow by 5 % or more. It fails if the memory
of Redis differs by more than a tenth from the sum over its jobs. It also fails if a process logs an error, or if the
checker finds a violation.
"""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from services.common.redis_client import FEED, TO_MOVE, key
from tests.chaos.checker import violations
from tests.chaos.harness import Chaos, job_of, name_of, say
from tests.contract.gateway import T
from tests.e2e.stack import OVERRIDES
from tests.store_size import copy_job, memory
from tests.support import wait_for
from tlm_core.jobs.states import TERMINAL

_CLIENTS, _COPIED, _COPIES, _MOST_GROWTH, _MOST_DIFFERENCE = 4, 50, 10, 0.05, 0.10
_TRAINS = 5  # every fifth job
_RECIPE = {name: value for name, value in OVERRIDES.items() if not name.startswith("selection.")} | {
    "selection.selector": "none", "joint.enabled": False,
}  # fmt: skip


@dataclass
class Soak:
    """Runs jobs until `seconds` have passed, and samples all processes."""

    chaos: Chaos
    seconds: float
    # (process, figure) → (seconds since the start, value)
    samples: dict[tuple[str, str], list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))

    def run(self) -> list[str]:
        """Run the jobs. Return a line for each reason to fail (see above)."""
        with self.chaos.running():
            self.chaos.add_dataset()
            empty, began = memory(self.chaos.store._redis), time.monotonic()
            with ThreadPoolExecutor(_CLIENTS) as pool:
                clients = [pool.submit(self._client, number, began) for number in range(_CLIENTS)]
                while time.monotonic() < began + self.seconds:
                    time.sleep(min(5.0, self.seconds / 100))
                    self._sample(time.monotonic() - began)
                for client in clients:
                    client.result()
            wait_for(lambda: not self.chaos.store._redis.scard(TO_MOVE), 60)
            self.chaos.collect()
            return [*self._growing(), *violations(self.chaos.history), *self._redis_size(empty), *self._errors()]

    def _errors(self) -> list[str]:
        """Return a line for each logger that logged errors. Without faults, no error may occur."""
        lines = [line for log in self.chaos.folder.glob("*.log") for line in log.read_text("utf-8").splitlines()]
        events = [json.loads(line) for line in lines if '"level": "error"' in line]
        by_logger = Counter(event["logger"] for event in events)
        first = {event["logger"]: event["event"] for event in reversed(events)}
        return [f"{logger} logged {count} errors, the first: {first[logger]}" for logger, count in by_logger.items()]

    def _client(self, number: int, began: float) -> None:
        """Submit one job after another, some with equal work, and pause or cancel some. began: the start of the run."""
        with httpx.Client(timeout=20, trust_env=False) as client:
            while time.monotonic() < began + self.seconds:
                name = name_of(number)
                self.chaos.history.planned.add(name)
                self.chaos.follow(client, name, _body(number), time.monotonic() + 300)
                number += _CLIENTS

    def _sample(self, at: float) -> None:
        processes = {f"{role} {n}": process.pid for (role, n), process in self.chaos.processes.items()}
        assert self.chaos.redis.process is not None
        for name, pid in {**processes, "Redis": self.chaos.redis.process.pid}.items():
            handles = len(list(Path(f"/proc/{pid}/fd").iterdir()))
            self.samples[name, "file handles"].append((at, handles))
            if name != "Redis":
                pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
                self.samples[name, "MB of memory"].append((at, pages * 4096 / 1e6))

    def _growing(self) -> list[str]:
        """Return a line for each figure that grows too much from the middle tenth of the time to the last tenth."""
        growing = []
        for (process, figure), samples in sorted(self.samples.items()):
            middle, end = (
                statistics.mean([value for at, value in samples if first <= at / self.seconds <= first + 0.1])
                for first in (0.45, 0.9)
            )
            say(f"| {process} | {figure} | {middle:.0f} | {end:.0f} | {end / middle - 1:+.1%} |")
            if end / middle - 1 >= _MOST_GROWTH:
                growing.append(f"{process}: {figure} grew by {end / middle - 1:.1%}")
        return growing

    def _redis_size(self, empty: int) -> list[str]:
        """Return a line if the memory of Redis differs too much from the computed memory of its jobs.

        Copies of some jobs of each kind show the mean memory of a job. empty: the bytes before the first job.
        """
        client, store = self.chaos.store._redis, self.chaos.store
        jobs = store.list_jobs(T, limit=1_000_000)[0]
        ended = [job for job in jobs if job.state in TERMINAL]
        measured = memory(client)
        shared = [FEED, key(T, "names"), *client.scan_iter(key(T, "idem", "*"))]  # copies of jobs do not add to these
        others = sum(client.memory_usage(name, samples=0) or 0 for name in shared)
        computed = float(empty + others)
        for kind in sorted({job.spec.kind for job in ended}):
            of_kind, before = [job for job in ended if job.spec.kind == kind], memory(client)
            copied = random.Random(0).sample(of_kind, min(_COPIED, len(of_kind)))  # some reuse the artifacts of others
            for job in copied:
                copy_job(client, job, _COPIES)
            each = (memory(client) - before) / (_COPIES * len(copied))
            computed += len(of_kind) * each
            say(f"Redis: {len(of_kind)} jobs of kind {kind} of {each / 1e3:.1f} kB")
        say(f"Redis: feed, names and idempotency keys {others / 1e3:.0f} kB")
        say(f"Redis: computed {computed / 1e6:.2f} MB, measured {measured / 1e6:.2f} MB")
        different = abs(measured / computed - 1) > _MOST_DIFFERENCE
        return [f"Redis: {measured} bytes, computed {computed:.0f}"] if different else []


def _body(number: int) -> dict[str, Any]:
    """Return the request of a job. Some jobs of the kind `chaos` have equal work, which is computed once."""
    if number % _TRAINS:
        return job_of(number * 4 // 5, groups=2)
    return {"kind": "train", "dataset": "toy", "overrides": _RECIPE, "seeds": [number]}


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # this exit stops all processes
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 7200.0
    os.environ["OMP_NUM_THREADS"] = "1"
    say("| process | figure | in the middle | at the end | growth |\n| --- | --- | --- | --- | --- |")
    # Other times have their defaults, because imports of torch take seconds. Only workers import torch: in the
    # other processes, the memory of torch would hide their growth.
    times = {"poll_seconds": "0.2"}
    chaos = Chaos(Path(tempfile.mkdtemp(prefix="soak-")), coordinators=2, times=times)
    wrong = Soak(chaos, seconds).run()
    say("\n".join(wrong) or f"Nothing grows in {seconds:g} s.")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
