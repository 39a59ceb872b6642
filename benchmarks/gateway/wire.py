"""A small HTTP client for load: one connection, as little work of its own as can be, since it shares the cores."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Wire:
    """A kept-alive connection to the gateway."""

    port: int
    token: str
    reader: asyncio.StreamReader | None = None
    writer: asyncio.StreamWriter | None = None

    async def request(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, bytes]:
        """(status, body) of one request."""
        if self.writer is None or self.reader is None:
            self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 22)
        content = b"" if body is None else json.dumps(body).encode()
        lines = [f"{method} {path} HTTP/1.1", "Host: gateway", f"Authorization: Bearer {self.token}",
                 f"Content-Length: {len(content)}", "Content-Type: application/json",
                 *(f"{name}: {value}" for name, value in headers.items())]  # fmt: skip
        self.writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + content)
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        status = int(head.split(" ", 2)[1])
        length = next(
            int(line.split(":")[1]) for line in head.lower().split("\r\n") if line.startswith("content-length:")
        )
        return status, await self.reader.readexactly(length)

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
            self.writer = None


@dataclass
class Load:
    """What came of a load. seconds: of each request that was answered well, from when it was due; bad: the others."""

    seconds: list[float] = field(default_factory=list)
    bad: int = 0
    took: float = 0.0

    def quantile(self, share: float) -> float:
        """Seconds within which `share` of the requests were answered."""
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    @property
    def rate(self) -> float:
        return len(self.seconds) / self.took


async def steady(clients: int, rate: float, seconds: float, send: Callable[[int], Awaitable[int]], good: int) -> Load:
    """`clients` that send `rate` requests a second in all, each at its own times, whether or not answers come.

    A request that has to wait for the one before it is counted from when it was due: a queue is not hidden.
    """
    load, start = Load(), time.perf_counter() + 0.2
    pause = clients / rate

    async def client(number: int) -> None:
        due = start + pause * number / clients
        while due < start + seconds:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            status = await send(number)
            if status == good:
                load.seconds.append(time.perf_counter() - due)
            else:
                load.bad += 1
            due += pause

    await asyncio.gather(*(client(number) for number in range(clients)))
    load.took = max(seconds, time.perf_counter() - start)
    return load
