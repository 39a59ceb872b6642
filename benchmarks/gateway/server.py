"""Run a gateway process with a real Redis (every write synced), a storage folder, a dataset and a corpus."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import redis

from benchmarks.gateway.load import Connection
from benchmarks.memory import memory_bytes
from services.common.catalog import Catalog
from services.common.catalog_records import CorpusVersion
from services.common.jobstore import JobStore
from tests.redis_server import RedisServer, free_port
from tlm_core.artifacts import ManifestRef
from tlm_core.artifacts.store import ArtifactStore
from tlm_core.corpus.states import CorpusState, LoadState
from tlm_core.jobs.spec import Resolved

TENANT = "default"
START_SECONDS = 120


@dataclass
class Gateway:
    """A running gateway, and direct access to its stores."""

    port: int
    token: str
    process: subprocess.Popen[bytes]
    root: Path
    redis: redis.Redis
    jobs: JobStore
    catalog: Catalog
    artifacts: ArtifactStore

    def connect(self) -> Connection:
        return Connection(self.port, self.token)

    def post(self, path: str, **request: object) -> None:
        headers = {"Authorization": f"Bearer {self.token}"}
        httpx.post(f"http://127.0.0.1:{self.port}{path}", headers=headers, timeout=120, **request).raise_for_status()

    def submit_job(self) -> None:
        self.post("/v1/jobs", json={"dataset": "toy", "corpus": "docs"})

    def resolved(self) -> Resolved:
        """Return the inputs and the recipe of the newest job, which trains on the dataset `toy`."""
        return self.jobs.list_jobs(TENANT, limit=1)[0][0].resolved

    def memory(self, field: str = "VmRSS") -> float:
        """Return the gateway's resident memory in MiB. field: `VmRSS` for the current value, `VmHWM` for the peak."""
        return memory_bytes(self.process.pid, field) / 2**20


@contextmanager
def run_gateway() -> Iterator[Gateway]:
    """Start Redis and the gateway with a dataset `toy` and a corpus `docs`, and stop both at the end."""
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    root = Path(tempfile.mkdtemp(prefix="tlm-bench-"))
    server = RedisServer(root)
    server.start()
    port = free_port()
    (root / "storage").mkdir()
    settings = {
        "PORT": str(port),
        "REDIS_URL": server.url,
        "REDIS_PASSWORD": server.password,
        "STORAGE": str(root / "storage"),
        "SCRATCH": str(root / "scratch"),
        "TOKEN_FILE": str(root / "token"),
        "RETRIEVER_URL": "http://127.0.0.1:1",
        "INTERNAL_TOKEN": "x",
    }
    environment = os.environ | {f"TLM_API_{name}": value for name, value in settings.items()}
    process = subprocess.Popen([sys.executable, "-m", "services.api"], env=environment)
    try:
        wait_for_port(port, process)
        client = server.client()
        token = (root / "token").read_text(encoding="ascii").strip()
        artifacts = ArtifactStore(str(root / "storage"), root / "cache")
        gateway = Gateway(port, token, process, root, client, JobStore(client), Catalog(client), artifacts)
        _add_data(gateway)
        yield gateway
    finally:
        process.terminate()
        process.wait(20)
        server.kill()
        shutil.rmtree(root, ignore_errors=True)


def wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until the process listens on the port. Raises RuntimeError if it ends or START_SECONDS pass."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(
                f"The server on port {port} ended, or did not listen within {START_SECONDS} s. See its output."
            )
        time.sleep(0.1)


def _add_data(gateway: Gateway) -> None:
    rows = "text,label\n" + "".join(f"good film {n},pos\nbad film {n},neg\n" for n in range(20))
    gateway.post("/v1/datasets", data={"name": "toy"}, files={"train": ("train.csv", rows)})
    ref = ManifestRef(folder="default/corpora/docs/v1", digest="1" * 64)
    load = gateway.catalog.add_load(TENANT, "docs", "en", ref)
    while not gateway.catalog.lease_load(TENANT, load.id, "bench", 600):  # the gateway's own loader can hold the lease
        time.sleep(1)
    version = CorpusVersion(
        version="v1", language="en", passages=ref, count=3, state=CorpusState.READY, created_at=load.created_at
    )
    gateway.catalog.save_load(load.model_copy(update={"state": LoadState.READY}), "bench", version)
