"""The work of one worker of a submission: run the stages of the group until they end or the machine stops."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from functools import cache

from services.common.jobstore import JobStore
from services.common.logs import set_up_logging
from services.common.metrics import PROGRESS, serve_metrics
from services.trainer.assignment import Assignment
from services.trainer.patience import patiently
from services.trainer.settings import METRICS_PORTS, TrainerSettings
from services.trainer.worker import Broadcast, GroupRunner
from tlm_core.errors import TLMError
from tlm_core.names import new_id
from tlm_core.pulse import PULSE
from tlm_core.training.speed import device_kind, flop_of, rate_name, seconds_per_flop

log = logging.getLogger(__name__)

_RENEWED_SECONDS = 86_400.0  # Measure again after this time, because other work may have slowed the measurement.


def compute(
    assignment: Assignment, rank: int = 0, world_size: int = 1, broadcast: Broadcast = lambda value: value
) -> None:
    """Run the stages of the worker `rank`. Raises the errors of the stages."""
    set_up_logging("worker", assignment.ids | {"rank": rank})
    settings, gpu = TrainerSettings(), assignment.gpus > 0
    _show_figures(settings.metrics_host, settings.worker_metrics_port)
    device, draining = device_kind(gpu=gpu), drain_on_sigterm(assignment)
    runner = GroupRunner(
        settings.job_store(),
        settings.artifact_store(),
        settings.scratch,
        rank=rank,
        world_size=world_size,
        broadcast=broadcast,
        draining=draining,
        device=device,
        cores=min(1.0, assignment.cpus),
    )
    runner.run(assignment)
    trains_here = gpu == (settings.worker_gpus > 0)
    if rank == 0 and trains_here and not draining.is_set():
        measure_once(runner.store, assignment, device)


def measure_once(store: JobStore, assignment: Assignment, device: str) -> None:
    """Store this device's training speed, measured at most once a day. Call this after all stages, so no job waits."""
    try:
        precision = store.get(assignment.tenant, assignment.job).resolved.recipe.number_format
        stored, name = store.rates(assignment.tenant), rate_name(flop_of(precision), device)
        rates = {"device": device}
        # Ids of jobs sort by time, so the id of the job that measured the rate shows the time.
        if stored.get(name, "").rpartition(" ")[2] < new_id("job", store.now() - _RENEWED_SECONDS):
            rates[name] = f"{seconds_per_flop(precision, gpu=assignment.gpus > 0)} {assignment.job}"
        if not rates.items() <= stored.items():
            store.save_rates(assignment.tenant, rates)
    except (TLMError, RuntimeError) as error:  # The job has succeeded, so a lack of GPU memory here may not fail it.
        log.warning("Cannot measure the speed of this device, so estimates do not use it: %s", error)


def _show_figures(host: str, port: int | None) -> None:
    """Serve the metrics of this worker to Prometheus, if one of the machine's ports is free."""
    PROGRESS.set_function(lambda: PULSE.count)
    try:
        serve_metrics(host, port, METRICS_PORTS)
    except OSError as error:
        log.warning("None of %d ports from %d on can serve the metrics of this worker: %s", METRICS_PORTS, port, error)


@cache
def drain_on_sigterm(assignment: Assignment) -> threading.Event:
    """Return an event that SIGTERM sets: the stage then writes a checkpoint and stops.

    The first call must be in the main thread. Rank 0 decides when to stop. The other processes of a submission report
    the signal to rank 0 through the job's record. A process that does not stop within `drain_seconds` calls sys.exit,
    so that it deletes its working folders.
    """
    settings, draining = TrainerSettings(), threading.Event()

    def pass_on() -> None:
        store = settings.job_store()
        patiently(lambda: store.report(assignment.tenant, assignment.job, assignment.attempt, draining=True))

    def drain(*_: object) -> None:
        if draining.is_set():
            return
        draining.set()
        signal.setitimer(signal.ITIMER_REAL, settings.drain_seconds)
        if assignment.distributed:
            threading.Thread(target=pass_on, daemon=True).start()

    signal.signal(signal.SIGALRM, lambda *_: sys.exit(128 + signal.SIGTERM))
    signal.signal(signal.SIGTERM, drain)
    return draining
