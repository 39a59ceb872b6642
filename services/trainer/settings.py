"""Settings of the coordinator and of the workers that it starts through Ray."""

from __future__ import annotations

import math
import sys
from typing import ClassVar

from pydantic import field_validator
from pydantic_settings import SettingsConfigDict

from services.common.settings import ServiceSettings

METRICS_PORTS = 8  # of a machine; each worker uses one


class TrainerSettings(ServiceSettings):
    """Settings from TLM_TRAINER_*. Set the same variables for the coordinator and for Ray's workers."""

    model_config = SettingsConfigDict(env_prefix="TLM_TRAINER_")
    idle_connections: ClassVar[int] = 2  # Threads rarely call Redis at the same time, so two connections suffice.

    ray_url: str = "http://127.0.0.1:8265"
    concurrency: int = 1  # jobs that one coordinator drives at the same time
    lease_seconds: float = 30.0
    hang_seconds: float = 120.0  # coordinators release jobs if a step, or a wait for Ray or the storage, is longer
    poll_seconds: float = 0.5
    metrics_port: int | None = None  # port at which the coordinator serves its metrics to Prometheus
    worker_metrics_port: int | None = None  # the first of METRICS_PORTS ports at which workers serve their metrics
    local_seconds: float = 1800.0  # a stage in the coordinator, such as a validation, hangs if it runs longer
    stall_seconds: float = 45.0  # workers that have begun to report, then are silent for this long, are stopped
    first_report_seconds: float = 300.0  # workers that have room and do not report for this long are stopped
    selection_seconds: float = 1800.0  # a selection whose progress does not change for this long is stopped
    start_seconds: float = 60.0  # after this time, workers that have not started are reported; Ray Train takes 15 s
    pause_seconds: float = 120.0  # after this time, the workers of a pausing job are stopped
    grow_seconds: float = 120.0  # if more workers have room for this long, the next attempt starts them
    drain_seconds: float = 90.0  # a worker that runs for this long after SIGTERM ends without a checkpoint
    worker_cpus: float = 1.0
    job_cpus: float | None = None  # CPUs that the workers of a job share; replaces worker_cpus
    worker_gpus: float = 0.0  # 0 or 1
    python: str = sys.executable

    @field_validator("worker_gpus")
    @classmethod
    def _none_or_one(cls, gpus: float) -> float:
        """Refuse a share of a GPU, because ranks cannot share a GPU. Refuse several GPUs, because a worker uses one."""
        if gpus not in (0.0, 1.0):
            raise ValueError(f"TLM_TRAINER_WORKER_GPUS is {gpus:g}. Set it to 1 (one GPU per worker) or to 0 (no GPU).")
        return gpus

    def cpus_per_worker(self, workers: int, side_by_side: int = 1) -> float:
        """Return the number of CPUs that Ray reserves for each worker.

        workers: number of workers that divide `job_cpus`. side_by_side: number of seeds that train at the same time.
        Each seed gets an equal fraction of a worker's CPUs, rounded down to 0.001 CPU, the unit of Ray. A seed gets at
        least 0.5 CPU, or all CPUs of a smaller worker. So fewer workers need memory at the same time.
        """
        cpus = self.worker_cpus if self.job_cpus is None else self.job_cpus / workers
        return cpus if side_by_side == 1 else max(min(cpus, 0.5), math.floor(cpus / side_by_side * 1000) / 1000)
