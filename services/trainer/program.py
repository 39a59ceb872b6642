"""The program that Ray runs for an attempt: `python -m services.trainer.program` with the arguments of an Assignment.

A single worker computes in this process, which Ray starts where there is room. Several workers are Ray actors that
this process starts and waits for. Their start delays the work, so this module imports only what it needs itself.
Ray retries nothing: a lost worker ends the attempt, and the next attempt continues from the last checkpoint.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import signal
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from services.trainer.assignment import Assignment
from services.trainer.oom import oom_kills
from services.trainer.process_group import Broadcast, Rendezvous, StageLoader, join

if TYPE_CHECKING:
    from services.trainer.settings import TrainerSettings

_PR_SET_PDEATHSIG = 1  # of prctl(2): ends the child with its parent


def main() -> None:
    """Run the assignment on the command line. Exits non-zero if a worker failed."""
    assignment, kills = Assignment.read(), oom_kills()
    code = _in_child(lambda: _run(assignment))
    if (code == -signal.SIGKILL or (code and assignment.workers > 1)) and oom_kills() > kills:
        _report_memory(assignment)
    sys.exit(128 - code if code < 0 else code)


def _in_child(run: Callable[[], None]) -> int:
    """Run in a child, and return its exit code. The kernel kills the process with the most memory: not this one."""
    child = os.fork()
    if not child:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        run()
        sys.exit()
    signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGTERM))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _report_memory(assignment: Assignment) -> None:
    """Report that the kernel killed a worker. It counts as a fault of the job, not as a lost worker."""
    from services.trainer.settings import TrainerSettings
    from tlm_core.errors import WorkerFailed

    error = WorkerFailed("Worker exceeded the memory limit of its container, and the kernel killed it.")
    store, events = TrainerSettings().job_store(), [("attempt.error", error.as_dict())]
    store.report(assignment.tenant, assignment.job, assignment.attempt, events=events)


def _run(assignment: Assignment) -> None:
    if assignment.workers > 1:
        _run_workers(assignment)
    else:
        _compute(assignment, 0, lambda value: value)


def _drain_on_sigterm(assignment: Assignment, settings: TrainerSettings) -> threading.Event:
    """Return an event that SIGTERM sets: the stage then writes a checkpoint and stops.

    Rank 0 decides when to stop. The other processes of a submission pass the signal on through the job's record.
    A stage that does not stop in time is ended; unlike the default handler, sys.exit deletes the working folders.
    """
    draining = threading.Event()

    def pass_on() -> None:
        settings.job_store().report(assignment.tenant, assignment.job, assignment.attempt, draining=True)

    def drain(*_: object) -> None:
        if draining.is_set():
            return
        draining.set()
        signal.setitimer(signal.ITIMER_REAL, settings.drain_seconds)
        if assignment.workers > 1:
            threading.Thread(target=pass_on, daemon=True).start()

    signal.signal(signal.SIGALRM, lambda *_: sys.exit(128 + signal.SIGTERM))
    signal.signal(signal.SIGTERM, drain)
    return draining


def _compute(assignment: Assignment, rank: int, broadcast: Broadcast, load: StageLoader | None = None) -> None:
    """Run the stages of one worker."""
    # numpy and torch read this variable when they are imported.
    os.environ["OMP_NUM_THREADS"] = str(max(1, int(assignment.cpus)))
    from services.common.logs import log_context, set_up_logging
    from services.trainer.settings import TrainerSettings
    from services.trainer.worker import GroupRunner
    from tlm_core.training.stage import Stage

    set_up_logging("worker")
    settings = TrainerSettings()
    runner = GroupRunner(
        settings.job_store(),
        settings.artifact_store(),
        settings.scratch,
        load or Stage.load,
        rank=rank,
        world_size=assignment.workers,
        broadcast=broadcast,
        draining=_drain_on_sigterm(assignment, settings),
    )
    with log_context(job_id=assignment.job, attempt=assignment.attempt, rank=rank):
        runner.run(assignment)


def _run_workers(assignment: Assignment) -> None:
    """Start all workers or none, and wait for them. Raises the error of the first worker that fails."""
    # Plain actors, not Ray Train: its controller and its trainer import torch and pandas before the first worker does.
    import ray
    from ray.util.placement_group import placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    from services.trainer.settings import TrainerSettings

    ray.init()
    _drain_on_sigterm(assignment, TrainerSettings())
    cpus, gpus = assignment.cpus, assignment.gpus
    group = placement_group([{"CPU": cpus} | ({"GPU": gpus} if gpus else {})] * assignment.workers, strategy="PACK")
    workers, secret = [], secrets.token_bytes(32)
    for rank in range(assignment.workers):
        strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank)
        actor = ray.remote(_Worker).options(num_cpus=cpus, num_gpus=gpus, scheduling_strategy=strategy)
        workers.append(actor.remote(assignment, rank, secret))
    address = workers[0].rendezvous_address.remote()
    running = [worker.run.remote(address) for worker in workers]
    while running:
        done, running = ray.wait(running)
        ray.get(done)


class _Worker:
    """One of several workers, in its own process. It ends when the program ends."""

    def __init__(self, assignment: Assignment, rank: int, secret: bytes) -> None:
        import ray

        self._assignment, self._rank, self._secret = assignment, rank, secret
        others = assignment.workers - 1
        self._rendezvous = None if rank else Rendezvous(ray.util.get_node_ip_address(), secret, others)

    def rendezvous_address(self) -> tuple[str, int]:
        """Return the address at which rank 0 waits for the other ranks."""
        assert self._rendezvous is not None
        return self._rendezvous.address

    def run(self, address: tuple[str, int]) -> None:
        """Join the process group and run this worker's part of the assignment."""
        broadcast = join(address, self._secret) if self._rendezvous is None else self._rendezvous.wait()
        load = StageLoader(broadcast, address[0], self._rank, self._assignment.workers)
        _compute(self._assignment, self._rank, broadcast, load)
        load.close()


if __name__ == "__main__":
    main()
