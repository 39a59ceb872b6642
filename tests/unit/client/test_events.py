"""The event stream: one sequence, however often the connection breaks."""

from __future__ import annotations

import random

import httpx
import pytest

from tests.unit.client.gateway import CutStream, client_of, end, event, job_view, problem
from tlm_client.events import EventParser
from tlm_core.errors import NotFound, Unavailable


class EventServer:
    """Serves `count` events from Last-Event-ID on, and breaks each of the first `cuts` connections at a random byte."""

    def __init__(self, count: int, cuts: int, seed: int) -> None:
        self.count = count
        self.cuts = cuts
        self.asked: list[str | None] = []
        self._random = random.Random(seed)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        last = request.headers.get("Last-Event-ID")
        self.asked.append(last)
        progress = 'event: progress\ndata: {"stage": "joint", "step": 3}\n\n'
        body = "retry: 1000\n\n: still here\n\n" + progress
        body += "".join(event(seq, "job.running") for seq in range(int(last or 0) + 1, self.count + 1)) + end()
        data = body.encode()
        cut = None
        if self.cuts:
            self.cuts -= 1
            cut = self._random.randrange(len(data) - len(end()))
        return httpx.Response(200, headers={"Content-Type": "text/event-stream"}, stream=CutStream(data, cut))


@pytest.mark.parametrize("seed", range(10))
def test_the_union_over_broken_connections_is_the_log(seed: int) -> None:
    server = EventServer(40, cuts=10, seed=seed)
    with client_of(server) as client:
        found = list(client.events("job_1"))
    assert [e.seq for e in found if e.seq is not None] == list(range(1, 41))
    assert len(server.asked) == 11
    assert server.asked[0] is None and server.asked[-1] is not None


def test_snapshots_are_told_and_have_no_number() -> None:
    with client_of(EventServer(1, 0, 0)) as client:
        first, second = client.events("job_1")
    assert (first.type, first.seq, first.data["step"]) == ("progress", None, 3)
    assert (second.type, second.seq, second.attempt) == ("job.running", 1, 1)


def test_a_stream_that_closes_before_its_end_is_opened_again() -> None:
    answers = [event(1), event(2) + end()]

    def handler(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, text=answers.pop(0))

    with client_of(handler) as client:
        assert [e.seq for e in client.events("job_1")] == [1, 2]


def test_an_event_that_is_cut_in_its_middle_is_not_told_half() -> None:
    text = (event(1) + event(2)).removesuffix("\n").encode()
    for size in (1, 7, len(text)):
        parser = EventParser()
        pieces = (text[start : start + size] for start in range(0, len(text), size))
        assert [frame.id for piece in pieces for frame in parser.feed(piece)] == ["1"]


def test_a_restart_of_the_gateway_is_survived_and_a_long_absence_told() -> None:
    now = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    away = [httpx.ConnectError("refused"), httpx.ReadTimeout("silent"), None]

    def handler(_: httpx.Request) -> httpx.Response:
        if away and (error := away.pop(0)) is not None:
            raise error
        if now > 100:
            raise httpx.ConnectError("refused")
        return httpx.Response(200, text=event(1)) if now > 50 else problem(503, "store_unavailable", "Redis is away")

    with client_of(handler, sleep=sleep, clock=lambda: now) as client:
        stream = client.events("job_1", patience=60.0)
        assert next(stream).seq == 1
        with pytest.raises(Unavailable, match="watch again later"):
            list(stream)
    assert now >= 160


def test_an_unknown_job_is_an_error_at_once() -> None:
    with (
        client_of(lambda _: problem(404, "not_found", "no job 'job_9'")) as client,
        pytest.raises(NotFound, match="no job"),
    ):
        list(client.events("job_9"))


def test_waiting_asks_for_the_state_and_does_not_believe_the_stream() -> None:
    """The first stream says that it has ended while the job still runs."""
    states = ["running", "failed"]
    streams = [event(1) + end(), event(2) + end()]
    asked = []

    def handler(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/events"):
            asked.append(request.headers.get("Last-Event-ID"))
            return httpx.Response(200, text=streams.pop(0))
        return httpx.Response(200, json=job_view(state=states.pop(0)))

    seen: list[int | None] = []
    with client_of(handler) as client:
        job = client.wait("job_1", lambda e: seen.append(e.seq))
    assert job.state == "failed"
    assert (seen, asked) == ([1, 2], [None, "1"])
