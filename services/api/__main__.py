"""The gateway process. `python -m services.api`, settings from TLM_API_*."""

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
from services.api.loads import LoadWorker
from services.api.outgoing import Outgoing
from services.api.parts import Parts
from services.api.predict import Predictor
from services.api.resumable import Uploads
from services.api.settings import ApiSettings
from services.api.tail import Tailer
from services.api.webhooks import Deliverer, Webhooks
from services.common.catalog import Catalog
from services.common.jobstore import JobStore
from services.common.logs import set_up_logging
from services.common.redis_client import connect
from services.common.retriever_client import connect_retriever

# Longer than clients and proxies pause between two requests (60 s is usual): a connection that the server closes just
# as the next request is on its way is an error that nobody can tell from a crash.
_KEEP_ALIVE_SECONDS = 75


def build_parts(settings: ApiSettings) -> Parts:
    """The gateway's stores and clients, as the settings tell."""
    from tlm_core.tasks.hub import read_hub
    from tlm_core.tasks.validate import load_task

    password = settings.redis_password.get_secret_value() if settings.redis_password else None
    client = connect(settings.redis_url, password=password)
    jobs = JobStore(client)
    artifacts = settings.artifact_store()
    catalog = Catalog(client)
    retriever = connect_retriever(settings.retriever_url, settings.internal_token.get_secret_value())
    webhooks, outgoing = Webhooks(client), Outgoing(private=settings.webhook_private)
    return Parts(
        settings=settings,
        token=ensure_token(settings.token_file),
        jobs=jobs,
        catalog=catalog,
        artifacts=artifacts,
        retriever=retriever,
        tailer=Tailer(client, jobs),
        predictor=Predictor(artifacts, capacity=settings.predict_cache_bytes),
        loads=LoadWorker(catalog, artifacts, retriever, settings.scratch),
        webhooks=webhooks,
        outgoing=outgoing,
        deliverer=Deliverer(client, jobs, webhooks, outgoing),
        uploads=Uploads(client, artifacts, settings.scratch, max_bytes=settings.max_upload_bytes),
        # The hub library's own cache lies in the home folder, which a container may not have.
        load_task=partial(load_task, hub=partial(read_hub, cache=settings.scratch / "hub")),
    )


class _Server(uvicorn.Server):
    """Ends the event streams first: a server that stops waits for its open connections."""

    parts: Parts

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.parts.tailer.close()
        await super().shutdown(sockets)


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    set_up_logging("api")
    # uvicorn raises the signal that stopped it again, when it has stopped.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    settings = ApiSettings()
    # What an earlier process was receiving or writing when it died is of no use to anyone.
    for name in ("uploads", "work"):
        shutil.rmtree(settings.scratch / name, ignore_errors=True)
    parts = build_parts(settings)
    config = uvicorn.Config(
        create_app(parts), host=settings.host, port=settings.port, log_config=None, access_log=False,
        timeout_graceful_shutdown=10, timeout_keep_alive=_KEEP_ALIVE_SECONDS,
    )  # fmt: skip
    server = _Server(config)
    server.parts = parts
    # Modules and routes are there for good: looked through by the collector again and again, they cost every request
    # of that moment a tenth of a second.
    gc.collect()
    gc.freeze()
    server.run()
    sys.exit(0 if server.started else 1)


if __name__ == "__main__":
    main()
