"""`python -m tests.chaos.times [N]`: how soon the service, with its default settings, notices faults and continues.

The command injects each fault N times (default 5), one kind after another. It fails if a time exceeds its goal.
"""

from __future__ import annotations

import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

from services.trainer.assignment import Assignment
from tests.chaos.harness import Chaos, say
from tests.chaos.kind import hang_file
from tests.chaos.ray import JobServer, Submission, send
from tests.chaos.real_ray import RayHead
from tests.contract.gateway import T
from tests.support import wait_for
from tlm_core.jobs.spec import Event
from tlm_core.jobs.states import TERMINAL

_STEPS, _STEP_SECONDS, _PATIENCE = 100_000, 0.5, 120.0
# Fault → the most seconds until it is noticed, and until the job or the answers resume.
GOALS = {
    "worker killed": (10, 60),
    "node lost, the cluster reports it": (60, 60),
    "worker hangs: heartbeats, no progress": (60, 60),
    "worker or node silent (SIGSTOP)": (60, 60),
    "coordinator killed": (35, 35),
    "gateway killed": (10, 10),
}


class Times:
    """Runs jobs that do not end, injects each fault `count` times, and measures the seconds until its effects."""

    def __init__(self, chaos: Chaos, count: int) -> None:
        self._chaos, self._count = chaos, count
        self.missed: list[str] = []
        self._client = httpx.Client(timeout=2, trust_env=False)

    def measure(self) -> None:
        self._submit()
        self._of_workers("worker killed", lambda run: send(run.process, signal.SIGKILL))
        self._of_workers("node lost, the cluster reports it", self._lose)
        self._of_workers("worker hangs: heartbeats, no progress", self._hang)
        self._of_workers("worker or node silent (SIGSTOP)", lambda run: send(run.process, signal.SIGSTOP))
        self._row("coordinator killed", [self._kill_coordinator() for _ in range(self._count)])
        self._row("gateway killed", [self._kill_gateway() for _ in range(self._count)])

    def _submit(self) -> None:
        for number in range(self._count):
            self._chaos.submit(self._client, number, steps=_STEPS, step_seconds=_STEP_SECONDS)

    def _working(self) -> list[Submission]:
        """Wait until every job trains steadily, and return their submissions."""
        assert isinstance(self._chaos.cluster, JobServer)
        wait_for(lambda: len(self._chaos.cluster.running()) == self._count, _PATIENCE)
        time.sleep(8)  # Time for some steps and a heartbeat.
        runs = self._chaos.cluster.running()
        assert len(runs) == self._count
        return runs

    def _of_workers(self, name: str, break_it: Callable[[Submission], None]) -> None:
        runs = self._working()
        began = {}
        for run in runs:
            began[Assignment.read(run.arguments).job] = time.time()
            break_it(run)
        times = [self._seconds(job, at, "job.requeued", "stage.resumed") for job, at in began.items()]
        for run in runs:
            send(run.process, signal.SIGKILL)
        self._row(name, times)

    def _lose(self, run: Submission) -> None:
        run.lost = True

    def _hang(self, run: Submission) -> None:
        hang_file(self._chaos.folder, run.process.pid or 0).touch()

    def _seconds(self, job: str, at: float, *signs: str) -> tuple[float, float]:
        """Return the seconds from `at` to an event of type `signs[0]`, and to the next event of type `signs[-1]`."""
        first = wait_for(lambda: next(self._since(job, at, signs[0]), None), _PATIENCE)
        last = wait_for(lambda: next(self._since(job, first.at, signs[-1]), None), _PATIENCE)
        return first.at - at, last.at - at

    def _since(self, job: str, at: float, type: str) -> Iterator[Event]:
        time.sleep(0.2)
        events = self._chaos.store.events(T, job, limit=1_000_000)
        yield from (event for event in events if event.at >= at and event.type == type)

    def _kill_coordinator(self) -> tuple[float, float]:
        """Kill the coordinator of the first job. The worker continues, so the job resumes when the fault is noticed."""
        self._working()
        job = self._chaos.store.list_jobs(T)[0][0]
        process = next(p for p in self._chaos.processes.values() if f"-{p.pid}-" in (job.owner or ""))
        at = time.time()
        send(process, signal.SIGKILL)
        return self._seconds(job.id, at, "job.adopted")

    def _kill_gateway(self) -> tuple[float, float]:
        """Kill the only gateway, which its supervisor starts again. Return the seconds to the next answer, twice."""
        at = time.time()
        send(self._chaos.processes["gateway", 0], signal.SIGKILL)
        wait_for(lambda: not self._chaos.processes["gateway", 0].is_alive() or time.time() > at + 1)
        seconds = wait_for(self._answered, _PATIENCE) - at
        return seconds, seconds

    def _answered(self) -> float:
        with suppress(httpx.HTTPError):
            self._client.get(f"{self._chaos.urls[0]}/healthz").raise_for_status()
            return time.time()
        time.sleep(0.05)
        return 0.0

    def _row(self, name: str, times: list[tuple[float, float]]) -> None:
        noticed, resumed = zip(*times, strict=True)
        goals = GOALS[name]
        say(f"| {name} | {_shown(noticed)} | {_shown(resumed)} | {goals[0]}, {goals[1]} | {len(times)} |")
        self.missed += missed_goals(name, max(noticed), max(resumed))


def missed_goals(name: str, noticed: float, resumed: float) -> list[str]:
    """Return a line for each missed goal. name: the fault. noticed, resumed: the longest times in seconds."""
    slowest = {"noticed": noticed, "resumed": resumed}.items()
    return [
        f"{name}: {what} after {seconds:.1f} s, goal {goal} s"
        for (what, seconds), goal in zip(slowest, GOALS[name], strict=True)
        if seconds > goal
    ]


@contextmanager
def defaults() -> Iterator[Chaos]:
    """Run two coordinators and one gateway with the default settings."""
    chaos = Chaos(Path(tempfile.mkdtemp(prefix="times-")), coordinators=2, gateways=1, times={})
    with chaos.running():
        chaos.add_dataset()
        yield chaos


def measure_head(count: int) -> None:
    """Kill Ray's head `count` times. The attempt of a job must continue. Then cancel the job, which must end."""
    chaos = Chaos(Path(tempfile.mkdtemp(prefix="head-")), coordinators=2, gateways=1, times={}, ray=True)
    with chaos.running(), httpx.Client(timeout=30, trust_env=False) as client:
        ray = chaos.cluster
        assert isinstance(ray, RayHead)
        chaos.add_dataset()
        job, away = chaos.submit(client, 0, steps=_STEPS, step_seconds=_STEP_SECONDS, groups=1), []
        for _ in range(count):
            wait_for(lambda: _step(chaos, job) and ray.answers(), _PATIENCE)
            step, at = _step(chaos, job), time.time()
            ray.kill_head()
            wait_for(lambda: not ray.answers(), _PATIENCE)
            wait_for(ray.answers, _PATIENCE)
            away.append(time.time() - at)
            done = wait_for(lambda before=step: _step(chaos, job) - before, _PATIENCE)  # type: ignore[misc]
            say(f"Ray's head was away for {away[-1]:.1f} s, in which the job made {done} steps of {_STEP_SECONDS} s")
        record = chaos.store.get(T, job)
        say(f"attempt {record.attempt}, {record.failures} failures, state {record.state}")
        chaos.request(client, "POST", f"/v1/jobs/{job}/cancel", random.Random(0))
        wait_for(lambda: chaos.store.get(T, job).state in TERMINAL and not ray.running(), _PATIENCE)
        assert record.attempt == 1, "A restart of the head must not end the attempt."
    say(f"| Ray's head killed, and started again: its next answer | {_shown(away)} | at the same time | | {count} |")


def _step(chaos: Chaos, job: str) -> int:
    progress = chaos.store.get(T, job).progress
    return progress.step if progress is not None else 0


def _shown(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds):.1f}, {max(seconds):.1f}"


def main() -> int:
    columns = ("fault", "noticed: median, maximum", "resumed: median, maximum", "goals of the maxima", "measured")
    say(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    with defaults() as chaos:
        times = Times(chaos, count)
        times.measure()
    measure_head(count)
    say("\n".join(times.missed) or "Every time is within its goal.")
    return int(bool(times.missed))


if __name__ == "__main__":
    sys.exit(main())
