"""Settings of the trainer: the coordinator, and the workers it starts through Ray."""

from __future__ import annotations

import sys
from pathlib import Path

from pydantic import SecretStr
from pydantic_settings import SettingsConfigDict

from services.common.settings import StoreSettings


class TrainerSettings(StoreSettings):
    """Read from TLM_TRAINER_*. The same variables are set where the coordinator and where Ray's workers run."""

    model_config = SettingsConfigDict(env_prefix="TLM_TRAINER_")

    retriever_url: str = "http://127.0.0.1:8322"
    internal_token: SecretStr = SecretStr("")
    ray_url: str = "http://127.0.0.1:8265"
    concurrency: int = 1  # jobs driven at once by one coordinator
    lease_seconds: float = 30.0
    poll_seconds: float = 0.5
    stall_seconds: float = 300.0  # a worker that has told nothing for so long is taken for dead
    start_seconds: float = 30.0  # workers that have not started by then are said to wait for room
    pause_seconds: float = 120.0  # a worker that has not stopped by then is stopped; its last checkpoint holds
    worker_cpus: float = 1.0
    job_cpus: float | None = None  # where given, what a job's workers share in place of worker_cpus for each
    worker_gpus: float = 0.0
    python: str = sys.executable

    @property
    def heartbeat(self) -> Path:
        """File whose time is that of the coordinator's last round, for a health probe to look at."""
        return self.scratch / "heartbeat"

    def needs(self, workers: int) -> dict[str, float]:
        """CPUs and GPUs of the program that is submitted: a single worker computes in it, of several it starts each."""
        return {"cpus": self.cpus_per_worker(workers), "gpus": self.worker_gpus} if workers == 1 else {}

    def cpus_per_worker(self, workers: int) -> float:
        """CPUs that each of a job's workers asks the cluster for, and computes with."""
        return self.worker_cpus if self.job_cpus is None else self.job_cpus / workers
