"""How an operation of the API is written once for both clients: as a generator of steps.

An operation yields what it wants done (a request, a pause, the next piece of a stream) and is sent what came of it; it
touches no socket itself. A client drives it: TLMClient by doing each step, AsyncTLMClient by awaiting it.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import httpx

from tlm_client.problems import away, error_of, json_of

T = TypeVar("T")
R = TypeVar("R")
S = TypeVar("S")


@dataclass(frozen=True)
class Call:
    """A request whose answer is JSON. repeat: sending it twice does no harm, so that is done when nobody answers."""

    method: str
    path: str
    repeat: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Send:
    """One request; its answer is read whole."""

    method: str
    path: str
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Open:
    """A request whose answer is read piece by piece; it takes the place of the stream that was open before."""

    method: str
    path: str
    headers: Mapping[str, str]
    timeout: httpx.Timeout | None = None


@dataclass(frozen=True)
class Opened:
    """The beginning of an answer; `Read` gives the rest."""

    status: int
    headers: httpx.Headers
    request: httpx.Request


@dataclass(frozen=True)
class Read:
    """The next bytes of the open stream; None at its end."""


@dataclass(frozen=True)
class Sleep:
    seconds: float


@dataclass(frozen=True)
class Now:
    """Seconds of a clock that never goes back."""


@dataclass(frozen=True)
class Emit(Generic[T]):
    """An item for whoever iterates."""

    value: T


Step = Call | Send | Open | Read | Sleep | Now
Ask = Generator[Step, Any, R]
Listing = Generator[Step | Emit[T], Any, None]


def call(method: str, path: str, *, repeat: bool = False, **options: Any) -> Ask[Any]:
    """The JSON that one request answers with. Raises what the gateway says."""
    return (yield Call(method, path, repeat, options))


def transformed(steps: Listing[T], change: Callable[[T], S]) -> Listing[S]:
    """The items of `steps`, changed."""
    return _through(steps, lambda value: Emit(change(value)))


def consumed(steps: Listing[T], take: Callable[[T], None]) -> Ask[None]:
    """All items of `steps`, given to `take`."""

    def taken(value: T) -> None:
        take(value)

    yield from _through(steps, taken)


def plain(steps: Generator[Any, Any, R], *, url: str, tries: int) -> Generator[Any, Any, R]:
    """`steps` with every Call carried out as requests and pauses, so that a client has only those to do."""

    def carried(step: Any) -> Ask[Any]:
        return (yield from _called(step, url, tries)) if isinstance(step, Call) else (yield step)

    return _through(steps, Emit, carried)


def _as_it_is(step: Any) -> Ask[Any]:
    return (yield step)


def _through(
    steps: Generator[Any, Any, R],
    item: Callable[[Any], Emit[Any] | None],
    carried: Callable[[Any], Ask[Any]] = _as_it_is,
) -> Generator[Any, Any, R]:
    """`steps`, its items replaced by what `item` makes of them (None: nothing), each step by what `carried` does.

    `steps` is told of whatever comes of a step; what `item` raises is no business of its.
    """
    run = _Run(steps)
    try:
        step = run.advance()
        while not run.over:
            if isinstance(step, Emit) and (step := item(step.value)) is None:
                step = run.advance()
                continue
            try:
                answer = yield from carried(step)
            except Exception as problem:
                step = run.advance(error=problem)
            else:
                step = run.advance(answer)
        value: R = run.result
        return value
    finally:
        steps.close()


def _called(wanted: Call, url: str, tries: int) -> Ask[Any]:
    for number in range(1, tries + 1 if wanted.repeat else 2):
        last = number == tries or not wanted.repeat
        try:
            response: httpx.Response = yield Send(wanted.method, wanted.path, wanted.options)
        except httpx.HTTPError as error:
            if last or not isinstance(error, httpx.TransportError):
                raise away(url, error) from error
        else:
            if last or response.status_code not in (502, 503, 504):
                if response.is_error:
                    raise error_of(response)
                return json_of(response)
        # Spread out, so that many clients of a gateway that comes back do not all come at once.
        yield Sleep(0.25 * 2**number * random.uniform(0.5, 1.0))
    raise AssertionError("the last try returns or raises")


class _Run:
    """One operation under way: its steps, its stream, if one is open, and what it returned."""

    def __init__(self, steps: Generator[Any, Any, Any]) -> None:
        self.steps = steps
        self.over = False
        self.result: Any = None
        self.response: httpx.Response | None = None
        self.pieces: Any = None

    def advance(self, answer: Any = None, error: Exception | None = None) -> Any:
        """The next step, after what came of the last one; None when it is `over`, and `result` is there."""
        try:
            return self.steps.throw(error) if error is not None else self.steps.send(answer)
        except StopIteration as end:
            self.over, self.result = True, end.value
            return None


class Driver:
    """Carries steps out on an httpx.Client."""

    def __init__(self, http: httpx.Client, sleep: Callable[[float], None], clock: Callable[[], float]) -> None:
        self._http = http
        self._sleep = sleep
        self._clock = clock

    def value(self, steps: Generator[Any, Any, R]) -> R:
        """What an operation returns."""
        run = _Run(steps)
        for _ in self._driven(run):
            raise AssertionError("an operation with one result has no items")
        result: R = run.result
        return result

    def each(self, steps: Listing[T]) -> Iterator[T]:
        """The items of an operation, as they come."""
        return self._driven(_Run(steps))

    def _driven(self, run: _Run) -> Iterator[Any]:
        try:
            step = run.advance()
            while not run.over:
                if isinstance(step, Emit):
                    yield step.value
                    step = run.advance()
                    continue
                try:
                    answer = self._do(step, run)
                except Exception as problem:
                    step = run.advance(error=problem)
                else:
                    step = run.advance(answer)
        finally:
            run.steps.close()
            if run.response is not None:
                run.response.close()

    def _do(self, step: Step, run: _Run) -> Any:
        match step:
            case Send(method, path, options):
                return self._http.request(method, path, **options)
            case Open():
                if run.response is not None:
                    run.response.close()
                run.response = self._http.send(_request(self._http, step), stream=True)
                run.pieces = run.response.iter_bytes()
                return Opened(run.response.status_code, run.response.headers, run.response.request)
            case Read():
                return next(run.pieces, None)
            case Sleep(seconds):
                return self._sleep(seconds)
            case Now():
                return self._clock()
        raise AssertionError(f"{step} is carried out before")


class AsyncDriver:
    """Carries steps out on an httpx.AsyncClient."""

    def __init__(
        self, http: httpx.AsyncClient, sleep: Callable[[float], Awaitable[None]], clock: Callable[[], float]
    ) -> None:
        self._http = http
        self._sleep = sleep
        self._clock = clock

    async def value(self, steps: Generator[Any, Any, R]) -> R:
        """What an operation returns."""
        run = _Run(steps)
        async for _ in self._driven(run):
            raise AssertionError("an operation with one result has no items")
        result: R = run.result
        return result

    def each(self, steps: Listing[T]) -> AsyncIterator[T]:
        """The items of an operation, as they come."""
        return self._driven(_Run(steps))

    async def _driven(self, run: _Run) -> AsyncIterator[Any]:
        try:
            step = run.advance()
            while not run.over:
                if isinstance(step, Emit):
                    yield step.value
                    step = run.advance()
                    continue
                try:
                    answer = await self._do(step, run)
                except Exception as problem:
                    step = run.advance(error=problem)
                else:
                    step = run.advance(answer)
        finally:
            run.steps.close()
            if run.response is not None:
                await run.response.aclose()

    async def _do(self, step: Step, run: _Run) -> Any:
        match step:
            case Send(method, path, options):
                return await self._http.request(method, path, **options)
            case Open():
                if run.response is not None:
                    await run.response.aclose()
                run.response = await self._http.send(_request(self._http, step), stream=True)
                run.pieces = run.response.aiter_bytes()
                return Opened(run.response.status_code, run.response.headers, run.response.request)
            case Read():
                return await anext(run.pieces, None)
            case Sleep(seconds):
                return await self._sleep(seconds)
            case Now():
                return self._clock()
        raise AssertionError(f"{step} is carried out before")


def _request(http: httpx.Client | httpx.AsyncClient, step: Open) -> httpx.Request:
    timeout = step.timeout or http.timeout
    return http.build_request(step.method, step.path, headers=dict(step.headers), timeout=timeout)


def refused(opened: Opened) -> Ask[Exception]:
    """The error that an answer which was opened as a stream stands for."""
    content = b""
    while (piece := (yield Read())) is not None:
        content += piece
    headers = {name: value for name, value in opened.headers.items() if name.lower() != "content-encoding"}
    return error_of(httpx.Response(opened.status, headers=headers, content=content, request=opened.request))
