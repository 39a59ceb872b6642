"""Event streams: one sequence of events over any number of broken connections."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.client.gateway import client_of, end, event, event_stream, job_view, problem
from tlm_client.async_client import AsyncTLMClient
from tlm_core.errors import NotFound, Unavailable

PROGRESS = 'event: progress\ndata: {"stage": "joint", "step": 3}\n\n'


class EventServer:
    """Serves `count` events after Last-Event-ID. cuts: the share of the body after which each connection breaks."""

    def __init__(self, count: int, cuts: list[float]) -> None:
        self.count = count
        self.cuts = list(cuts)
        self.last_ids: list[str | None] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        last = request.headers.get("Last-Event-ID")
        self.last_ids.append(last)
        body = "retry: 1000\n\n: still here\n\n" + PROGRESS
        body += "".join(event(seq, "job.running") + PROGRESS for seq in range(int(last or 0) + 1, self.count + 1))
        return event_stream(body + end(), int(self.cuts.pop(0) * len(body)) if self.cuts else None)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(0, 1), max_size=10))
def test_broken_connections_lose_and_repeat_no_event(cuts: list[float]) -> None:
    server = EventServer(40, cuts)
    with client_of(server) as client:
        events = list(client.events("job_1"))
    assert [e.seq for e in events if e.seq is not None] == list(range(1, 41))
    assert len(server.last_ids) == len(cuts) + 1
    assert server.last_ids[0] is None


def test_progress_snapshots_have_no_seq() -> None:
    with client_of(EventServer(1, [])) as client:
        first, second, third = client.events("job_1")
    assert (first.type, first.seq, first.data["step"]) == ("progress", None, 3)
    assert (second.type, second.seq, second.attempt) == ("job.running", 1, 1)
    assert (third.type, third.seq) == ("progress", None)


def test_stream_without_end_event_is_opened_again() -> None:
    answers = [event(1), event(1) + event(2) + end()]
    with client_of(lambda _: event_stream(answers.pop(0))) as client:
        assert [e.seq for e in client.events("job_1")] == [1, 2]


def test_client_survives_a_gateway_restart_but_not_a_long_outage() -> None:
    now = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    outage = [httpx.ConnectError("refused"), httpx.ReadTimeout("silent"), None]

    def handler(_: httpx.Request) -> httpx.Response:
        if outage and (error := outage.pop(0)) is not None:
            raise error
        if now > 100:
            raise httpx.ConnectError("refused")
        return event_stream(event(1)) if now > 50 else problem(503, "store_unavailable", "Redis is down")

    with client_of(handler, sleep=sleep, clock=lambda: now) as client:
        stream = client.events("job_1", patience=60.0)
        assert next(stream).seq == 1
        with pytest.raises(Unavailable, match="No data from the gateway for 60 s"):
            list(stream)
    assert now >= 160


def test_comments_count_as_data() -> None:
    """A quiet stream may break after hours. The client then connects again."""
    now, answers = 0.0, [": still here\n\n", end()]

    def handler(_: httpx.Request) -> httpx.Response:
        nonlocal now
        now += 1000.0
        return event_stream(answers.pop(0))

    with client_of(handler, clock=lambda: now) as client:
        assert list(client.events("job_1", patience=60.0)) == []
    assert answers == []


def test_open_event_streams_do_not_block_other_requests() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        if b"/events" in request:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + event(1).encode())
            await reader.read()  # until the client closes the connection
        else:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n" + b'{"redis": "ok"}     ')
        writer.close()

    async def watch_and_request() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1")
        url = "http://{}:{}".format(*server.sockets[0].getsockname())
        async with server, AsyncTLMClient(url, "secret", timeout=2.0) as client:
            streams = [client.events(f"job_{number}") for number in range(101)]
            assert [(await anext(stream)).seq for stream in streams] == [1] * 101
            assert await client.ready() == {"redis": "ok"}
            for stream in streams:
                await stream.aclose()  # type: ignore[attr-defined]

    asyncio.run(watch_and_request())


def test_unknown_job_raises_at_once() -> None:
    with (
        client_of(lambda _: problem(404, "not_found", "no job 'job_9'")) as client,
        pytest.raises(NotFound, match="no job"),
    ):
        list(client.events("job_9"))


def test_wait_reads_the_state_after_the_stream_ends() -> None:
    """The first stream ends while the job still runs."""
    states = ["running", "failed"]
    streams = [event(1) + end(), event(2) + end()]
    last_ids = []

    def handler(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/events"):
            last_ids.append(request.headers.get("Last-Event-ID"))
            return event_stream(streams.pop(0))
        return httpx.Response(200, json=job_view(state=states.pop(0)))

    seen: list[int | None] = []
    with client_of(handler) as client:
        job = client.wait("job_1", lambda e: seen.append(e.seq))
    assert job.state == "failed"
    assert (seen, last_ids) == ([1, 2], [None, "1"])
