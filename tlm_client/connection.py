"""The API client. `make client` generates this file from async_connection.py. Do not edit it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, ParamSpec, Self, TypeVar, Unpack, cast
from urllib.parse import quote

import httpx
from httpx_sse import EventSource
from tenacity import RetryCallState, Retrying, stop_after_attempt

from tlm_client import http
from tlm_client.transfer import Download, FormFile, OnBytes, Stream, announcements, local_errors, next_part, total_size
from tlm_core import wire
from tlm_core.artifacts import FileEntry
from tlm_core.errors import CorruptArtifact, TLMError, Unavailable

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
PAGE = 100
# The gateway validates and stores an upload before it answers.
UPLOAD_TIMEOUT = httpx.Timeout(60.0, connect=5.0, read=900.0)
# The gateway sends at least a comment every 15 s. A much longer silence means that the connection is dead.
_STREAM_TIMEOUT = httpx.Timeout(45.0, connect=5.0)
_TRANSFER_TRIES = 6
_LOCK_SECONDS = 0.2


class Connection:
    """Sends requests to one gateway. The subclass defines the methods of the API. Raises errors of tlm_core.errors."""

    def __init__(
        self,
        url: str,
        token: str,
        *,
        timeout: float = 60.0,
        tries: int = 4,
        transport: httpx.BaseTransport | None = None,
        sleep: http.SyncSleep = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.url = url.rstrip("/")
        http.check_gateway(self.url, token)
        self._http = httpx.Client(
            transport=transport,
            base_url=self.url,
            headers=http.authorization(token),
            timeout=httpx.Timeout(timeout, connect=5.0),
            trust_env=not http.is_loopback(self.url),  # A proxy cannot reach the loopback interface of this machine.
            limits=http.LIMITS,
        )
        self._tries = tries
        self._sleep = sleep
        self._clock = clock

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    # --- requests ----------------------------------------------------------------------------------------------------

    def _get(self, kind: type[T], path: str, /, *parts: str, **params: http.Param) -> T:
        return self._call(kind, "GET", http.path(path, *parts), repeat=True, params=http.present(params))

    def _list(self, kind: type[wire.Items[T]], path: str, /, *parts: str, **params: http.Param) -> list[T]:
        return list((self._get(kind, path, *parts, **params)).data)

    def _pages(
        self, kind: type[wire.Page[T]], key: Callable[[T], str], path: str, /, *parts: str, **params: http.Param
    ) -> Iterator[T]:
        """Yield the items of all pages. key: maps the last item of a page to the parameter `after` of the next page."""
        while True:
            page = self._get(kind, path, *parts, limit=PAGE, **params)
            for item in page.data:
                yield item
            if not page.has_more or not page.data:
                return
            params["after"] = key(page.data[-1])

    def _post(
        self, kind: type[T], path: str, *parts: str, repeat: bool = False, **options: Unpack[http.RequestOptions]
    ) -> T:
        return self._call(kind, "POST", http.path(path, *parts), repeat=repeat, **options)

    def _delete(self, path: str, *parts: str, **params: http.Param) -> None:
        response = self._send("DELETE", http.path(path, *parts), params=params)
        if response.status_code != httpx.codes.NO_CONTENT:
            raise http.error_of(response)

    def _call(
        self, kind: type[T], method: str, path: str, *, repeat: bool = False, **options: Unpack[http.RequestOptions]
    ) -> T:
        tries = self._tries if repeat else 1
        return http.parse(kind, self._retry(tries, self._send, method, path, **options))

    def _retry(self, tries: int, call: http.SyncCall[P, R], *args: P.args, **options: P.kwargs) -> R:
        return self._retrying(stop_after_attempt(tries))(call, *args, **options)

    def _persist(self, patience: float, call: http.SyncCall[P, R], *args: P.args, **options: P.kwargs) -> R:
        """Repeat `call` until the gateway answers, and return the result of `call`.

        Raises Unavailable after at least `patience` seconds without an answer. If the gateway hangs, the error comes
        later, because `call` itself tries several times.
        """
        end = self._clock() + patience
        return self._retrying(lambda _: self._clock() >= end)(call, *args, **options)

    def _retrying(self, stop: Callable[[RetryCallState], bool]) -> Retrying:
        wait, retry = http.retry_delay, http.is_retryable
        return Retrying(stop=stop, wait=wait, retry=retry, sleep=self._sleep, reraise=True)

    def _send(self, method: str, path: str, **options: Unpack[http.RequestOptions]) -> httpx.Response:
        with http.request_errors():
            request = self._http.build_request(method, path, **options)
        try:
            response = self._http.send(request)
        except httpx.HTTPError as error:
            raise http.unanswered(self.url, error) from error
        if not response.is_success:
            raise http.error_of(response)
        return response

    @contextmanager
    def _stream(self, path: str, **options: Unpack[http.RequestOptions]) -> Iterator[httpx.Response]:
        """Yield a response whose body is not read yet. Raises the errors of `_send`."""
        try:
            with self._http.stream("GET", path, **options) as response:
                if not response.is_success:
                    response.read()
                    raise http.error_of(response)
                yield response
        except httpx.HTTPError as error:
            raise http.unanswered(self.url, error) from error

    def _follow(self, path: str, stream: Stream) -> Iterator[tuple[str, wire.JsonObject]]:
        """Yield (type, JSON) of each server-sent event until the event `end`. Reconnects after a broken connection."""
        while True:
            reason = "The gateway closed the stream before the job was over."
            try:
                with self._stream(path, headers=stream.headers(), timeout=_STREAM_TIMEOUT) as response:
                    stream.connected(response)
                    for event in EventSource(response).iter_sse():
                        if event.event == "end":
                            return
                        body = stream.body_of(event)
                        if body is not None:
                            yield event.event, body
            except Unavailable as error:
                reason = error.message
            self._sleep(stream.next_delay(reason))

    # --- transfers ---------------------------------------------------------------------------------------------------

    def _upload(
        self,
        kind: type[T],
        path: str,
        body: Mapping[str, object],
        files: Sequence[tuple[str | None, Path]],
        in_parts_from: int,
    ) -> T:
        """Post `body` with files, in parts from `in_parts_from` bytes on. files: split (None for a corpus) and path."""
        if total_size(files) >= in_parts_from:
            return self._upload_in_parts(kind, f"{path}/from-uploads", body, files)
        form = {name: value if isinstance(value, str) else json.dumps(value) for name, value in body.items()}
        parts = [(split or "files", (file.name, cast(IO[bytes], FormFile(file)), http.BYTES)) for split, file in files]
        return self._post(kind, path, data=form, files=parts, timeout=UPLOAD_TIMEOUT)

    def _upload_in_parts(
        self, kind: type[T], path: str, body: Mapping[str, object], files: Sequence[tuple[str | None, Path]]
    ) -> T:
        """Upload files in parts, then post `body` with their ids. If a request is refused, delete the uploads."""
        announced = announcements(files)
        uploads: list[wire.Upload] = []
        try:
            for (_, file), announcement in zip(files, announced, strict=True):
                uploads.append(self._post(wire.Upload, "/v1/uploads", json=announcement))
                self._upload_parts(file, uploads[-1])
            ids = {split: upload.id for (split, _), upload in zip(files, uploads, strict=True)}
            body = {**body, "files": [upload.id for upload in uploads] if None in ids else ids}
            return self._post(kind, path, json=body, timeout=UPLOAD_TIMEOUT, repeat=True)
        except Unavailable:
            raise
        except TLMError:
            for upload in uploads:
                with suppress(TLMError):  # The gateway deletes unused uploads after a few days.
                    self._delete("/v1/uploads/{}", upload.id)
            raise

    def _upload_parts(self, file: Path, upload: wire.Upload) -> None:
        with local_errors(f"reading {file}"), open(file, "rb") as handle:
            while upload.offset < upload.size:
                try:
                    upload = self._retry(_TRANSFER_TRIES, self._upload_part, handle, upload)
                except Unavailable as error:
                    raise error.followed_by(f"Repeat the upload of {file.name} later.") from error

    def _upload_part(self, handle: IO[bytes], upload: wire.Upload) -> wire.Upload:
        """Send the next part, and return the upload. Read the offset first, because an earlier answer may be lost."""
        path = http.path("/v1/uploads/{}", upload.id)
        upload = self._get(wire.Upload, path)
        part, headers = next_part(handle, upload)
        return self._call(wire.Upload, "PUT", path, content=part, headers=headers) if part else upload

    def _download(self, base: str, file: FileEntry, folder: Path, on_bytes: OnBytes | None) -> Path:
        download, path = Download(file, folder, on_bytes), f"{base}/{quote(file.name)}"
        with local_errors(f"writing {download.target}"), ExitStack() as stack:
            while not download.lock(stack):
                self._sleep(_LOCK_SECONDS)
            if download.exists():
                return download.target
            for _ in range(2):  # The second try is for a damaged partial file.
                while not download.is_complete():
                    try:
                        self._retry(_TRANSFER_TRIES, self._receive, path, download)
                    except Unavailable as error:
                        raise error.followed_by(f"Download {file.name} again later to resume.") from error
                if download.publish():
                    return download.target
        raise CorruptArtifact(f"{file.name} has a wrong SHA-256 after two downloads. Report this to the operator.")

    def _receive(self, path: str, download: Download) -> None:
        """Append the missing bytes to the partial file. Raises Unavailable if no new byte arrives."""
        start = download.done
        try:
            with self._stream(path, headers=download.headers()) as response:
                with download.opened(response) as write:
                    for block in response.iter_bytes():
                        write(block)
        except Unavailable:
            if download.done <= start:
                raise
        if download.done <= start:
            raise Unavailable(f"The gateway sent no bytes of {download.file.name}. Download again.")

    def _download_archive(self, path: str, target: Path) -> Path:
        """Download an archive to `target`, which appears when complete. Raises Unavailable if the connection breaks."""
        partial = target.with_name(f"{target.name}.part")
        with local_errors(f"writing {target}"):
            target.parent.mkdir(parents=True, exist_ok=True)
            with self._stream(path, headers={"Accept-Encoding": "identity"}) as response:
                with open(partial, "wb") as handle:
                    for block in response.iter_bytes():
                        handle.write(block)
            size = partial.stat().st_size
            if size != int(response.headers.get("content-length", size)):
                raise Unavailable(f"The download of {target.name} ended too early, at byte {size:,}. Download again.")
            return partial.replace(target)
