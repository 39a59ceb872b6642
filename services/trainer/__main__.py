"""The trainer service: one coordinator. Run `python -m services.trainer` with settings from TLM_TRAINER_*."""

from __future__ import annotations

import functools
import os
import socket
import uuid
from concurrent.futures import ThreadPoolExecutor

from services.common.archive import Archive
from services.common.background import Background, conditions, stopped_by_signals
from services.common.logs import set_up_logging
from services.common.metrics import serve_metrics
from services.trainer.cluster import connect_cluster
from services.trainer.coordinator import Coordinator
from services.trainer.local_stages import LocalThreads
from services.trainer.selections import Selections
from services.trainer.settings import TrainerSettings
from services.trainer.sweeper import StorageSweeper, Sweeper
from services.trainer.worker import run_local


def main() -> None:
    """Run a coordinator until SIGTERM. Then release the leases, so that another coordinator adopts the jobs at once."""
    set_up_logging("trainer")
    settings = TrainerSettings()
    artifacts = settings.artifact_store()
    stop = stopped_by_signals()
    store, cluster, retriever = settings.job_store(), connect_cluster(settings.ray_url), settings.retriever()
    archive = Archive(store)
    repeated = (
        (Background("streams"), archive.move_marked, 5.0),
        (Background("marks"), archive.mark_streams, 3600.0),
        (Background("archive"), archive.archive_ended, 60.0),
        (Background("sweep"), Sweeper(store, cluster).sweep, 60.0),
        (Background("orphans"), StorageSweeper(store, artifacts, retriever).sweep, 86_400.0 / 4),
    )
    coordinator = Coordinator(
        store,
        artifacts,
        Selections(retriever),
        cluster,
        settings,
        owner=f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}",
        local=LocalThreads(
            functools.partial(run_local, artifacts, settings.scratch),
            functools.partial(ThreadPoolExecutor, max_workers=2, thread_name_prefix="stage"),
        ),
    )
    tasks = [coordinator.task, coordinator.leases, *(task for task, _, _ in repeated)]
    serve_metrics(settings.metrics_host, settings.metrics_port, conditions=lambda: conditions(tasks))
    for task, work, seconds in repeated:
        task.start(work, seconds, stop)
    coordinator.run(stop)


if __name__ == "__main__":
    main()
