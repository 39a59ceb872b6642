"""What operations share: paths, lists page by page, answers as values, uploads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ValidationError

from tlm_client.problems import error_of
from tlm_client.steps import Ask, Emit, Listing, Send, Sleep, call, transformed
from tlm_core.artifacts import sha256_file
from tlm_core.errors import Conflict, Fault, InvalidDataset, TLMError, Unavailable

Model = TypeVar("Model", bound=BaseModel)
PAGE = 100
# Until a large upload has been checked and stored, nothing is answered.
_CHECKING_SECONDS = 900.0
# Larger files go in parts, so that a broken connection costs little.
RESUMABLE_BYTES = 64 << 20
_PART_BYTES = 8 << 20
_TRIES = 6


def at(path: str, **parts: str) -> str:
    """`/v1/jobs/{job}` with its parts filled in and made safe."""
    return path.format(**{name: quote(part, safe="") for name, part in parts.items()})


def model(cls: type[Model], body: Any) -> Model:
    """An answer as a value. Raises TLMError for one of another release."""
    try:
        return cls.model_validate(body, extra="ignore")
    except ValidationError as error:
        raise TLMError(
            f"the gateway's answer is not understood; use the same release here and there: {error}"
        ) from error


def items(
    path: str, key: Callable[[dict[str, Any]], str], filters: Mapping[str, Any] | None = None
) -> Listing[dict[str, Any]]:
    """All items of a list, page by page; key: what the next page is asked for with."""
    after: dict[str, str] = {}
    while True:
        page = yield from call("GET", path, params={"limit": PAGE, **(filters or {}), **after}, repeat=True)
        for one in page["data"]:
            yield Emit(one)
        if not page["has_more"] or not page["data"]:
            return
        after = {"after": key(page["data"][-1])}


def pages(
    cls: type[Model], path: str, key: Callable[[Model], str], filters: Mapping[str, Any] | None = None
) -> Listing[Model]:
    """All items of a list as values."""
    return transformed(items(path, lambda one: key(model(cls, one)), filters), lambda one: model(cls, one))


def patient() -> httpx.Timeout:
    return httpx.Timeout(60.0, connect=5.0, read=_CHECKING_SECONDS)


def upload(path: str, form: Mapping[str, str], files: Sequence[tuple[str, Path]]) -> Ask[Any]:
    """Post files in one form."""
    with ExitStack() as stack:
        parts = []
        for field, file in files:
            handle = stack.enter_context(open(file, "rb"))
            parts.append((field, (file.name, handle, "application/octet-stream")))
        return (yield from call("POST", path, data=dict(form), files=parts, timeout=patient()))


def sent_in_parts(path: str, body: Mapping[str, Any], files: Sequence[tuple[str, Path]], *, listed: bool) -> Ask[Any]:
    """Upload files in parts and post `body` with their ids as `files`; listed: without their fields.

    What is refused is not kept. Raises InvalidDataset, before anything is sent, for files that are empty.
    """
    empty = [
        Fault("empty_file", f"{file.name} is empty; fill it or leave it out", None if listed else name)
        for name, file in files
        if not size_of([file])
    ]
    if empty:
        raise InvalidDataset(empty[0].message, empty)
    sent: list[tuple[str, str]] = []
    try:
        for name, file in files:
            about = {"name": file.name, "size": size_of([file]), "sha256": sha256_file(file)}
            begun = yield from call("POST", "/v1/uploads", json=about)
            sent.append((name, str(begun["id"])))
            yield from _parts(file, begun)
        named: Any = [one for _, one in sent] if listed else dict(sent)
        return (yield from call("POST", path, json={**body, "files": named}, timeout=patient()))
    except Unavailable:
        raise
    except TLMError:
        for _, one in sent:
            yield Send("DELETE", at("/v1/uploads/{upload}", upload=one), {})
        raise


def size_of(files: Iterable[Path]) -> int:
    return sum(file.stat().st_size for file in files)


def _parts(file: Path, begun: Mapping[str, Any]) -> Ask[None]:
    """Send one file part by part to the upload that was begun for it. After a cut it goes on where the gateway says.

    Raises Unavailable when the gateway takes nothing for several tries in a row, and what it answers with.
    """
    path, size, offset, idle = at("/v1/uploads/{upload}", upload=str(begun["id"])), size_of([file]), 0, 0
    with open(file, "rb") as handle:
        while offset < size:
            handle.seek(offset)
            data = handle.read(min(_PART_BYTES, int(begun["part_bytes"])))
            try:
                offset, idle = (yield from _part(path, data, offset, size)), 0
            except (httpx.TransportError, Unavailable) as error:
                idle += 1
                if idle >= _TRIES:
                    raise Unavailable(
                        f"{file.name} cannot be uploaded ({str(error) or type(error).__name__}); try again later"
                    ) from error
                yield Sleep(min(0.5 * 2**idle, 8.0))
                offset = int((yield from call("GET", path, repeat=True))["offset"])


def _part(path: str, data: bytes, offset: int, size: int) -> Ask[int]:
    """Send one part; returns where the next one begins."""
    headers = {
        "Content-Range": f"bytes {offset}-{offset + len(data) - 1}/{size}",
        "Content-Type": "application/octet-stream",
    }
    response: httpx.Response = yield Send("PUT", path, {"content": data, "headers": headers})
    if not response.is_error:
        return int(response.json()["offset"])
    error = error_of(response)
    if isinstance(error, Conflict) and "offset" in error.facts:  # the answer to an earlier part was lost
        return int(error.facts["offset"])
    raise error
