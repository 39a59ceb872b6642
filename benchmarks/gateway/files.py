"""Compare downloads from the gateway with those from a bare file server. Measure the validation of a million rows."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.gateway.server import TENANT, Gateway, wait_for_port
from benchmarks.report import alternate, figure, ratios
from benchmarks.shared import result_of
from tests.redis_server import free_port
from tlm_core.names import new_id

_BYTES = 256 << 20
_ROWS = 1_000_000
_BARE_SERVER = """
import sys, uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles
app = Starlette(routes=[Mount("/", StaticFiles(directory=sys.argv[1]))])
uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="error", access_log=False)
"""
_VALIDATION = """
import json, sys, time
from pathlib import Path
from benchmarks.memory import peak_bytes
from tlm_core.tasks.options import DatasetOptions
from tlm_core.tasks.validate import load_task
start = time.perf_counter()
_, report = load_task({"train": Path(sys.argv[1])}, DatasetOptions(name="bench"))
print(json.dumps([time.perf_counter() - start, peak_bytes() / 1e6, sum(report["counts"].values())]))
"""


def measure_downloads(gateway: Gateway) -> None:
    """Download a large file in turns from the gateway and from a bare Starlette server. Compare the rates."""
    raw = gateway.root / "raw"
    raw.mkdir()
    with open(raw / "train.bin", "wb") as handle:
        for _ in range(_BYTES >> 20):
            handle.write(os.urandom(1 << 20))
    dataset = new_id("ds")
    ref = gateway.artifacts.write(f"{TENANT}/datasets/{dataset}/raw", raw, artifact="dataset", stage="dataset")
    summary = {"rows": {}, "labels": 0, "warnings": 0}
    gateway.catalog.add_dataset(TENANT, dataset, "large", raw=ref, report=ref, options={}, summary=summary)
    port = free_port()
    folder = Path(gateway.artifacts.path(ref.folder))
    bare_server = subprocess.Popen([sys.executable, "-c", _BARE_SERVER, str(folder), str(port)])
    try:
        wait_for_port(port, bare_server)
        before = gateway.memory()
        path = f"/v1/datasets/{dataset}/files/train.bin"
        rates = alternate(
            {
                "gateway": lambda: _download_rate(gateway.port, path, gateway.token),
                "bare": lambda: _download_rate(port, "/train.bin", ""),
            },
            5,
        )
        growth = gateway.memory("VmHWM") - before
    finally:
        bare_server.terminate()
        bare_server.wait(20)
    figure("download_of_bare_server", ratios(rates["gateway"], rates["bare"]), unit="ratio", goal=0.7)
    figure("download_rate", [rate / 1e6 for rate in rates["gateway"]], unit="MB/s")
    figure("download_memory_growth", [max(0.0, growth)], unit="MB", goal=50, better="lower")


def measure_validation(folder: Path) -> None:
    """Read and validate a CSV file of a million rows, each time in a new process."""
    file = folder / "million.csv"
    with open(file, "w", encoding="utf-8") as handle:
        handle.write("text,label\n")
        for number in range(_ROWS):
            text = f"the {number} th text says {number * 7919 % 100_003} things of {number % 977}"
            handle.write(f"{text},l{number % 20}\n")
    seconds, memory = [], []
    for _ in range(3):
        run_seconds, run_memory, counted = result_of([sys.executable, "-c", _VALIDATION, str(file)])
        assert counted == _ROWS, counted
        seconds.append(run_seconds)
        memory.append(run_memory)
    figure("validate_million_rows", seconds, unit="s", goal=10, better="lower")
    figure("validate_million_rows_memory", memory, unit="MB", goal=500, better="lower")


def _download_rate(port: int, path: str, token: str) -> float:
    """Return the bytes per second of one download; the body is discarded."""
    start, received = time.perf_counter(), 0
    with socket.create_connection(("127.0.0.1", port)) as connection:
        head = f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n\r\n"
        connection.sendall(head.encode())
        block = bytearray(1 << 20)
        while count := connection.recv_into(block):
            received += count
    if received < _BYTES:
        raise RuntimeError(f"The download of {path} ended after {received} of {_BYTES} bytes. See the output above.")
    return received / (time.perf_counter() - start)
