"""The loader service fetches and splits corpora. The retriever indexes them. Run `python -m services.loader`."""

from __future__ import annotations

import logging
import os
import shutil
import threading
from pathlib import Path

from pydantic_settings import SettingsConfigDict

from services.common.background import conditions, stopped_by_signals
from services.common.catalog import Catalog
from services.common.liveness import Liveness
from services.common.logs import set_up_logging
from services.common.metrics import serve_metrics
from services.common.settings import ServiceSettings
from services.loader.loads import NEAR, LoadWorker
from tlm_core.artifacts.store import drop_untouched

log = logging.getLogger(__name__)

_BEAT_SECONDS = 5.0
_HANG_SECONDS = 3600.0  # long, because the download of a large file advances no counter
_NEAR_SECONDS = 7 * 24 * 3600


class LoaderSettings(ServiceSettings):
    """Settings of the loader, from TLM_LOADER_* variables."""

    model_config = SettingsConfigDict(env_prefix="TLM_LOADER_")

    metrics_port: int | None = None  # port at which the loader serves its metrics to Prometheus


def main() -> None:
    """Work on loads until SIGTERM or SIGINT. An unfinished load continues at the next start, or in another loader."""
    set_up_logging("loader")
    settings, stop = LoaderSettings(), stopped_by_signals()
    for name in ("work", "hub"):  # files and downloads of an earlier process
        shutil.rmtree(settings.scratch / name, ignore_errors=True)
    drop_untouched(settings.scratch / NEAR, _NEAR_SECONDS)  # state of loads that another loader finished
    retriever = settings.retriever()
    worker = LoadWorker(Catalog(settings.redis), settings.artifact_store(), retriever, settings.scratch)
    serve_metrics(settings.metrics_host, settings.metrics_port, conditions=lambda: conditions(worker.tasks))
    thread = threading.Thread(target=worker.run, name="loads", daemon=True)
    thread.start()
    settings.scratch.mkdir(parents=True, exist_ok=True)
    if not watch(thread, stop, settings.heartbeat):
        os._exit(1)  # a thread that hangs cannot be ended
    worker.stop()
    thread.join()


def watch(
    thread: threading.Thread,
    stop: threading.Event,
    heartbeat: Path,
    beat: float = _BEAT_SECONDS,
    hang: float = _HANG_SECONDS,
) -> bool:
    """Touch the file `heartbeat` every `beat` seconds. Return True when `stop` is set or the thread has ended.

    Returns False if the splitting of a corpus has made no progress for more than `hang` seconds.
    """
    liveness = Liveness(cpu=lambda: 0.0)  # other threads compute too, so CPU time is no progress of the load
    while thread.is_alive() and not stop.is_set():
        if liveness.sample()[0] > hang:
            log.error("The splitting of a corpus makes no progress. This process ends. A new one continues the load.")
            return False
        heartbeat.touch()
        stop.wait(beat)
    return True


if __name__ == "__main__":
    main()
