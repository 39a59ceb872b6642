"""Downloads beside a bare file server, and the check of a million rows."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.gateway.server import Served, T
from benchmarks.report import alternate, figure, ratios, remark
from tests.redis_server import free_port
from tlm_core.jobs.spec import new_id

_BARE = """
import sys, uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles
app = Starlette(routes=[Mount("/", StaticFiles(directory=sys.argv[1]))])
uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="error", access_log=False)
"""
_CHECK = """
import json, sys, time
from pathlib import Path
from benchmarks.memory import peak_bytes
from tlm_core.tasks.options import DatasetOptions
from tlm_core.tasks.validate import load_task
began = time.perf_counter()
_, report = load_task({"train": Path(sys.argv[1])}, DatasetOptions(name="bench"))
print(json.dumps([time.perf_counter() - began, peak_bytes() / 1e6, sum(report["counts"].values())]))
"""


def downloads(served: Served, *, size: int = 256 << 20, repeats: int = 5) -> None:
    """One large file from the gateway and from a bare server of the same framework, in turn."""
    raw = served.root / "raw"
    raw.mkdir()
    with open(raw / "train.bin", "wb") as handle:
        for _ in range(size >> 20):
            handle.write(os.urandom(1 << 20))
    dataset = new_id("ds")
    ref = served.artifacts.write(f"{T}/datasets/{dataset}/raw", raw, artifact="dataset", stage="dataset")
    served.catalog.add_dataset(
        T, dataset, "large", raw=ref, report=ref, options={}, summary={"rows": {}, "labels": 0, "warnings": 0}
    )
    port = free_port()
    folder = Path(served.artifacts.path(ref.folder))
    bare = subprocess.Popen([sys.executable, "-c", _BARE, str(folder), str(port)])
    try:
        _wait(port)
        before = served.memory()
        found = alternate(
            {
                "gateway": lambda: _rate(served.port, f"/v1/datasets/{dataset}/files/train.bin", served.token, size),
                "bare": lambda: _rate(port, "/train.bin", "", size),
            },
            repeats,
        )
        grown = served.memory("VmHWM") - before
    finally:
        bare.terminate()
        bare.wait(20)
    figure("download_of_bare_server", ratios(found["gateway"], found["bare"]), unit="ratio", goal=0.7)
    figure("download_rate", [rate / 1e6 for rate in found["gateway"]], unit="MB/s")
    figure("download_memory_growth", [max(0.0, grown)], unit="MB", goal=50, better="lower")


def validation(folder: Path, *, rows: int = 1_000_000, repeats: int = 3) -> None:
    """Reading and checking a CSV file of a million rows, in a process of its own."""
    file = folder / "million.csv"
    with open(file, "w", encoding="utf-8") as handle:
        handle.write("text,label\n")
        for number in range(rows):
            handle.write(
                f"the {number} th text says {number * 7919 % 100_003} things of {number % 977},l{number % 20}\n"
            )
    found = []
    for _ in range(repeats):
        done = subprocess.run([sys.executable, "-c", _CHECK, str(file)], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
        seconds, memory, counted = map(float, done.stdout.strip().strip("[]").split(","))
        assert counted == rows, counted
        found.append((seconds, memory))
    figure("validate_million_rows", [one for one, _ in found], unit="s", goal=10, better="lower")
    figure("validate_million_rows_memory", [one for _, one in found], unit="MB", goal=500, better="lower")
    file.unlink()


def _rate(port: int, path: str, token: str, size: int) -> float:
    """Bytes a second of one download, its body thrown away."""
    began, got = time.perf_counter(), 0
    with socket.create_connection(("127.0.0.1", port)) as line:
        head = f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n\r\n"
        line.sendall(head.encode())
        block = bytearray(1 << 20)
        while count := line.recv_into(block):
            got += count
    if got < size:
        remark(bytes(block[:500]).decode("latin-1"))
        raise RuntimeError(f"only {got} of {size} bytes came")
    return got / (time.perf_counter() - began)


def _wait(port: int) -> None:
    deadline = time.monotonic() + 60
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if time.monotonic() > deadline:
            raise RuntimeError("the bare server did not start")
        time.sleep(0.1)
