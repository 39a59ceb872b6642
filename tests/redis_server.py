"""A real Redis for tests with the settings of the stack: AOF on, every write synced, loopback, password."""

from __future__ import annotations

import os
import re
import secrets
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest
import redis

from services.common.redis_client import connect
from tests.support import skip_or_fail
from tlm_client.stack.parts import redis_executable
from tlm_client.stack.processes import free_ports
from tlm_core.errors import MissingDependency, StoreUnavailable


def free_port() -> int:
    return free_ports(1)[0]


def redis_binary() -> str:
    """Return the path of the Redis that `tlm up` uses."""
    try:
        return redis_executable()
    except MissingDependency as error:
        skip_or_fail(error.message)


@cache
def _allow_debug(binary: str) -> list[str]:
    """Return the arguments that allow DEBUG to local clients. Redis 6 allows it, and does not know the setting."""
    version = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout
    release = re.search(r"v=(\d+)", version)
    return ["--enable-debug-command", "local"] if release is None or int(release[1]) >= 7 else []


@dataclass
class RedisServer:
    """One redis-server process on a folder, which a test may kill and start again."""

    folder: Path
    port: int = field(default_factory=free_port)
    password: str = field(default_factory=lambda: secrets.token_hex(8))
    process: subprocess.Popen[bytes] | None = None
    binary: str = field(default_factory=redis_binary)
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        self.process = subprocess.Popen(
            [
                self.binary,
                "--port",
                str(self.port),
                "--bind",
                "127.0.0.1",
                "--dir",
                str(self.folder),
                "--save",
                "",
                "--appendonly",
                "yes",
                "--appendfsync",
                "always",
                "--requirepass",
                self.password,
                *_allow_debug(self.binary),
            ],
            stdout=subprocess.DEVNULL,
            env=os.environ | self.environment,
        )
        deadline = time.monotonic() + 15
        while True:
            try:
                self.client().ping()
                return
            except StoreUnavailable:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def client(self) -> redis.Redis:
        return connect(self.url, password=self.password)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def redis_client(redis_server: RedisServer) -> Iterator[redis.Redis]:
    """Return a client of an empty Redis."""
    client = redis_server.client()
    client.flushall()
    yield client
    client.close()
