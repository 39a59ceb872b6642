"""The gateway process: `python -m services.api`, configured by TLM_API_*."""

from __future__ import annotations

import gc
import shutil
import signal
import socket
import sys
from functools import partial

import uvicorn

from services.api.app import create_app
from services.api.auth import ensure_token
from services.api.models import Models
from services.api.outbound import Outbound
from services.api.parts import Parts
from services.api.predict import Predictor
from services.api.resumable_uploads import Uploads
from services.api.settings import ApiSettings
from services.api.streams import Tailer
from services.api.webhook_delivery import Deliverer, Webhooks
from services.common.catalog import Catalog
from services.common.history import History
from services.common.jobstore import JobStore
from services.common.logs import set_up_logging

# Longer than the usual idle timeout of clients and proxies (60 s). If the server closed a connection first, a request
# that is sent at that moment would fail.
_KEEP_ALIVE_SECONDS = 75


def build_parts(settings: ApiSettings) -> Parts:
    """Return the gateway's stores and clients, which use the addresses and folders in `settings`."""
    from tlm_core.tasks.hub import read_hub
    from tlm_core.tasks.validate import load_task

    client = settings.redis
    artifacts = settings.artifact_store()
    jobs = JobStore(client, History(artifacts))
    catalog = Catalog(client)
    retriever = settings.retriever()
    webhooks, outbound = Webhooks(client), Outbound(private=settings.webhook_private)
    return Parts(
        settings=settings,
        token=ensure_token(settings.token_file),
        jobs=jobs,
        catalog=catalog,
        artifacts=artifacts,
        retriever=retriever,
        tailer=Tailer(client, jobs),
        predictor=Predictor(artifacts, capacity=settings.predict_cache_bytes),
        webhooks=webhooks,
        outbound=outbound,
        deliverer=Deliverer(client, jobs, webhooks, outbound),
        models=Models(client, jobs),
        uploads=Uploads(client, artifacts, settings.scratch, max_bytes=settings.max_upload_bytes),
        # The hub library caches in the home folder by default, which a container may not have.
        load_task=partial(load_task, hub=partial(read_hub, cache=settings.scratch / "hub")),
    )


class _Server(uvicorn.Server):
    """A server that ends the event streams when it shuts down. Otherwise uvicorn would wait for their connections."""

    parts: Parts

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.parts.tailer.close()
        await super().shutdown(sockets)


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    set_up_logging("api")
    # uvicorn raises the signal again after its shutdown. These handlers then end the process with status 0.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    settings = ApiSettings()
    # Delete incomplete files and downloads of an earlier process.
    for name in ("uploads", "work", "hub"):
        shutil.rmtree(settings.scratch / name, ignore_errors=True)
    parts = build_parts(settings)
    config = uvicorn.Config(
        create_app(parts), host=settings.host, port=settings.port, log_config=None, access_log=False,
        timeout_graceful_shutdown=10, timeout_keep_alive=_KEEP_ALIVE_SECONDS,
    )  # fmt: skip
    server = _Server(config)
    server.parts = parts
    # Exclude modules and routes from garbage collection; scanning them would delay requests by a tenth of a second.
    gc.collect()
    gc.freeze()
    server.run()
    sys.exit(0 if server.started else 1)


if __name__ == "__main__":
    main()
