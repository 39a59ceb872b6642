"""The Python clients of the API, one that waits and one for asyncio, both made of the same operations.

with TLMClient(url, token) as tlm:
    job = tlm.wait(tlm.submit(JobSpec(dataset="reviews")).id)

async with AsyncTLMClient(url, token) as tlm:
    job = await tlm.wait((await tlm.submit(JobSpec(dataset="reviews"))).id)
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, TypeVar

import httpx

from tlm_client.operations import data, results
from tlm_client.operations import jobs as work
from tlm_client.steps import Ask, AsyncDriver, Driver, Listing, plain
from tlm_core.errors import InvalidRequest

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


def _one(operation: Callable[P, Ask[R]]) -> Callable[Concatenate[TLMClient, P], R]:
    """A method that carries `operation` out and returns its result."""

    @functools.wraps(operation)
    def method(client: TLMClient, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return client._driver.value(plain(operation(*args, **kwargs), url=client.url, tries=client._tries))

    return method


def _many(operation: Callable[P, Listing[T]]) -> Callable[Concatenate[TLMClient, P], Iterator[T]]:
    """A method that gives the items of `operation`."""

    @functools.wraps(operation)
    def method(client: TLMClient, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        return client._driver.each(plain(operation(*args, **kwargs), url=client.url, tries=client._tries))

    return method


def _awaited(
    operation: Callable[P, Ask[R]],
) -> Callable[Concatenate[AsyncTLMClient, P], Coroutine[Any, Any, R]]:
    """A coroutine method that carries `operation` out and returns its result."""

    @functools.wraps(operation)
    async def method(client: AsyncTLMClient, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return await client._driver.value(plain(operation(*args, **kwargs), url=client.url, tries=client._tries))

    return method


def _streamed(operation: Callable[P, Listing[T]]) -> Callable[Concatenate[AsyncTLMClient, P], AsyncIterator[T]]:
    """A method that gives the items of `operation` to `async for`."""

    @functools.wraps(operation)
    def method(client: AsyncTLMClient, /, *args: P.args, **kwargs: P.kwargs) -> AsyncIterator[T]:
        return client._driver.each(plain(operation(*args, **kwargs), url=client.url, tries=client._tries))

    return method


class TLMClient:
    """Calls of one gateway. Thread-safe; close it, or use it in a `with` block.

    timeout: seconds without any byte before an answer is given up. tries: how often a request that can safely be
    repeated is sent when the gateway does not answer. transport, sleep, clock: for tests.
    Every method raises the errors of tlm_core.errors: what the gateway says, and Unavailable if it does not answer.
    Raises InvalidRequest for a URL or token that nothing can be sent with.
    """

    def __init__(
        self,
        url: str,
        token: str,
        *,
        timeout: float = 60.0,
        tries: int = 4,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.url = url.rstrip("/")
        self._http = httpx.Client(transport=transport, **_settings(self.url, token, timeout))
        self._tries = tries
        self._driver = Driver(self._http, sleep, clock)

    def __enter__(self) -> TLMClient:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _value: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    add_dataset = _one(data.add_dataset)
    add_hub_dataset = _one(data.add_hub_dataset)
    datasets = _many(data.datasets)
    dataset = _one(data.dataset)
    dataset_report = _one(data.dataset_report)
    dataset_preview = _one(data.dataset_preview)
    download_dataset = _one(data.download_dataset)
    delete_dataset = _one(data.delete_dataset)
    add_corpus = _one(data.add_corpus)
    fetch_corpus = _one(data.fetch_corpus)
    wait_corpus = _one(data.wait_corpus)
    corpora = _many(data.corpora)
    cancel_load = _one(data.cancel_load)
    corpus = _one(data.corpus)
    delete_corpus = _one(data.delete_corpus)
    refused_passages = _one(data.refused_passages)
    search = _one(data.search)
    submit = _one(work.submit)
    dry_run = _one(work.dry_run)
    estimate = _one(work.estimate)
    retry = _one(work.retry)
    clone = _one(work.clone)
    jobs = _many(work.jobs)
    job = _one(work.job)
    delete_job = _one(work.delete_job)
    cancel = _one(work.cancel)
    pause = _one(work.pause)
    resume = _one(work.resume)
    compare = _one(work.compare)
    events = _many(work.events)
    past_events = _many(work.past_events)
    wait = _one(work.wait)
    metrics = _many(work.metrics)
    series = _one(work.series)
    logs = _many(work.logs)
    last_logs = _one(work.last_logs)
    follow_logs = _many(work.follow_logs)
    checkpoints = _one(results.checkpoints)
    download_checkpoint = _one(results.download_checkpoint)
    download_checkpoint_archive = _one(results.download_checkpoint_archive)
    report = _one(results.report)
    model = _one(results.model_files)
    download = _one(results.download)
    download_archive = _one(results.download_archive)
    selection = _one(results.selection)
    predict = _one(results.predict)
    add_webhook = _one(results.add_webhook)
    webhooks = _one(results.webhooks)
    webhook = _one(results.webhook)
    webhook_attempts = _one(results.webhook_attempts)
    delete_webhook = _one(results.delete_webhook)
    info = _one(results.info)
    ready = _one(results.ready)


class AsyncTLMClient:
    """TLMClient for asyncio: the same methods, to be awaited or iterated with `async for`. Files are read and written
    in between without a thread, so large ones are better left to TLMClient."""

    def __init__(
        self,
        url: str,
        token: str,
        *,
        timeout: float = 60.0,
        tries: int = 4,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.url = url.rstrip("/")
        self._http = httpx.AsyncClient(transport=transport, **_settings(self.url, token, timeout))
        self._tries = tries
        self._driver = AsyncDriver(self._http, sleep, clock)

    async def __aenter__(self) -> AsyncTLMClient:
        return self

    async def __aexit__(
        self, _type: type[BaseException] | None, _value: BaseException | None, _trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self._http.aclose()

    add_dataset = _awaited(data.add_dataset)
    add_hub_dataset = _awaited(data.add_hub_dataset)
    datasets = _streamed(data.datasets)
    dataset = _awaited(data.dataset)
    dataset_report = _awaited(data.dataset_report)
    dataset_preview = _awaited(data.dataset_preview)
    download_dataset = _awaited(data.download_dataset)
    delete_dataset = _awaited(data.delete_dataset)
    add_corpus = _awaited(data.add_corpus)
    fetch_corpus = _awaited(data.fetch_corpus)
    wait_corpus = _awaited(data.wait_corpus)
    corpora = _streamed(data.corpora)
    cancel_load = _awaited(data.cancel_load)
    corpus = _awaited(data.corpus)
    delete_corpus = _awaited(data.delete_corpus)
    refused_passages = _awaited(data.refused_passages)
    search = _awaited(data.search)
    submit = _awaited(work.submit)
    dry_run = _awaited(work.dry_run)
    estimate = _awaited(work.estimate)
    retry = _awaited(work.retry)
    clone = _awaited(work.clone)
    jobs = _streamed(work.jobs)
    job = _awaited(work.job)
    delete_job = _awaited(work.delete_job)
    cancel = _awaited(work.cancel)
    pause = _awaited(work.pause)
    resume = _awaited(work.resume)
    compare = _awaited(work.compare)
    events = _streamed(work.events)
    past_events = _streamed(work.past_events)
    wait = _awaited(work.wait)
    metrics = _streamed(work.metrics)
    series = _awaited(work.series)
    logs = _streamed(work.logs)
    last_logs = _awaited(work.last_logs)
    follow_logs = _streamed(work.follow_logs)
    checkpoints = _awaited(results.checkpoints)
    download_checkpoint = _awaited(results.download_checkpoint)
    download_checkpoint_archive = _awaited(results.download_checkpoint_archive)
    report = _awaited(results.report)
    model = _awaited(results.model_files)
    download = _awaited(results.download)
    download_archive = _awaited(results.download_archive)
    selection = _awaited(results.selection)
    predict = _awaited(results.predict)
    add_webhook = _awaited(results.add_webhook)
    webhooks = _awaited(results.webhooks)
    webhook = _awaited(results.webhook)
    webhook_attempts = _awaited(results.webhook_attempts)
    delete_webhook = _awaited(results.delete_webhook)
    info = _awaited(results.info)
    ready = _awaited(results.ready)


def check_gateway(url: str, token: str) -> None:
    """Raises InvalidRequest for a URL that no gateway can have, and for a token that no header can carry."""
    try:
        found = httpx.URL(url)
        found.host.encode("idna")
    except (httpx.InvalidURL, UnicodeError) as error:
        raise InvalidRequest(f"'{url}' is no URL of a gateway: {error}; correct it") from error
    if found.scheme not in ("http", "https") or not found.host or not 0 < (found.port or 1) < 65_536:
        raise InvalidRequest(f"'{url}' is no URL of a gateway; give one such as http://127.0.0.1:8321")
    if not (token.isascii() and token.isprintable() and token == token.strip()):
        raise InvalidRequest(
            "the token holds a line break, a blank at an end or a character that is not ASCII; copy it again"
        )


def _settings(url: str, token: str, timeout: float) -> dict[str, Any]:
    check_gateway(url, token)
    return {
        "base_url": url,
        # Without a token the gateway itself says that one is missing; an empty one could not even be sent.
        "headers": {"Authorization": f"Bearer {token}"} if token else {},
        "timeout": httpx.Timeout(timeout, connect=5.0),
        # A proxy of the environment knows nothing of this machine's loopback.
        "trust_env": not _is_loopback(url),
    }


def _is_loopback(url: str) -> bool:
    host = httpx.URL(url).host
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
