"""A gateway in a process of its own on a real Redis (every write synced) and a folder, filled for the benches."""

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

from services.common.catalog import Catalog
from services.common.catalog_records import CorpusVersion
from services.common.jobstore import JobStore
from tests.redis_server import RedisServer, free_port
from tlm_core.artifacts import ArtifactStore, ManifestRef
from tlm_core.wire import CorpusState, LoadState

T = "default"


@dataclass
class Served:
    """A gateway that runs. pid: of its process."""

    port: int
    token: str
    pid: int
    root: Path
    redis: redis.Redis
    jobs: JobStore
    catalog: Catalog
    artifacts: ArtifactStore

    def http(self) -> httpx.Client:
        return httpx.Client(
            base_url=f"http://127.0.0.1:{self.port}", headers={"Authorization": f"Bearer {self.token}"}, timeout=120
        )

    def memory(self, what: str = "VmRSS") -> float:
        """MB that the gateway holds (VmRSS) or has held at most (VmHWM)."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(f"{what}:"):
                return int(line.split()[1]) / 1024
        raise AssertionError(f"no {what}")


@contextmanager
def gateway() -> Iterator[Served]:
    """Start Redis and the gateway, with a data set `toy` and a corpus `docs`; stop both at the end."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    root = Path(tempfile.mkdtemp(prefix="tlm-bench-"))
    server = RedisServer(root)
    server.start()
    port = free_port()
    (root / "storage").mkdir()
    environment = {
        **os.environ, "TLM_API_PORT": str(port), "TLM_API_REDIS_URL": server.url,
        "TLM_API_REDIS_PASSWORD": server.password, "TLM_API_STORAGE": str(root / "storage"),
        "TLM_API_SCRATCH": str(root / "scratch"), "TLM_API_TOKEN_FILE": str(root / "token"),
        "TLM_API_RETRIEVER_URL": "http://127.0.0.1:1", "TLM_API_INTERNAL_TOKEN": "x",
    }  # fmt: skip
    with open(root / "log", "wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "services.api"], env=environment, stderr=log)
    try:
        _wait(port, process, root / "log")
        client = server.client()
        token = (root / "token").read_text().strip()
        artifacts = ArtifactStore(str(root / "storage"), root / "cache")
        served = Served(port, token, process.pid, root, client, JobStore(client), Catalog(client), artifacts)
        _fill(served)
        yield served
    finally:
        process.terminate()
        process.wait(20)
        server.kill()
        shutil.rmtree(root, ignore_errors=True)


def _wait(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 120
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the gateway did not start:\n{log.read_text()[-2000:]}")
        time.sleep(0.1)


def _fill(served: Served) -> None:
    rows = "text,label\n" + "".join(f"good film {n},pos\nbad film {n},neg\n" for n in range(20))
    with served.http() as http:
        http.post("/v1/datasets", data={"name": "toy"}, files={"train": ("train.csv", rows)}).raise_for_status()
    ref = ManifestRef(folder="default/corpora/docs/v1", digest="1" * 64)
    load = served.catalog.add_load(T, "docs", "en", ref)
    while not served.catalog.lease_load(T, load.id, "bench", 600):  # the gateway's own loader has it for a moment
        time.sleep(1)
    version = CorpusVersion(
        version="v1", language="en", passages=ref, count=3, state=CorpusState.READY, created_at=load.created_at
    )
    served.catalog.save_load(load.model_copy(update={"state": LoadState.READY}), "bench", version)
