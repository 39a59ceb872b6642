"""A minimal HTTP client for load tests. It shares the cores with the gateway, so it does as little as possible."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field


class Connection:
    """One keep-alive connection to the gateway."""

    def __init__(self, port: int, token: str) -> None:
        self._port = port
        self._token = token
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def request(
        self, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None
    ) -> int:
        """Send one request, discard the body of the response, and return its status."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 22)
        reader, writer = self._streams
        content = b"" if body is None else json.dumps(body).encode()
        fields = {
            "Host": "gateway",
            "Authorization": f"Bearer {self._token}",
            "Content-Length": len(content),
            "Content-Type": "application/json",
            **(headers or {}),
        }
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + content)
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        length = next(line.split(":")[1] for line in head.split("\r\n") if line.startswith("content-length:"))
        await reader.readexactly(int(length))
        return int(head.split(" ", 2)[1])

    def close(self) -> None:
        if self._streams:
            self._streams[1].close()


@dataclass
class Load:
    """The result of `run_load`. seconds: for each successful request, the time from its due time until its answer."""

    seconds: list[float] = field(default_factory=list)
    failures: int = 0
    duration: float = 0.0

    def quantile(self, share: float) -> float:
        """Return the seconds within which this share of the successful requests had an answer."""
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    @property
    def rate(self) -> float:
        return len(self.seconds) / self.duration


async def run_load(
    connect: Callable[[], Connection],
    clients: int,
    rate: float,
    seconds: float,
    send: Callable[[Connection, int], Awaitable[int]],
    *,
    expected: int,
) -> Load:
    """Send `rate` requests per second for `seconds`, each at a fixed due time. The rate is for all clients together.

    If a request waits for an earlier request of its client, its time includes this wait.
    send: gets a connection and the number of its client, sends a request, and returns the status. expected: the status
    of a success.
    """
    load, start, interval = Load(), time.perf_counter() + 0.2, clients / rate

    async def run_client(number: int) -> None:
        connection, due = connect(), start + interval * number / clients
        try:
            while due < start + seconds:
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                if await send(connection, number) == expected:
                    load.seconds.append(time.perf_counter() - due)
                else:
                    load.failures += 1
                due += interval
        finally:
            connection.close()

    await asyncio.gather(*map(run_client, range(clients)))
    load.duration = max(seconds, time.perf_counter() - start)
    return load
