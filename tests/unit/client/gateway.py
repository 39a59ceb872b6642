"""Fake gateways for the transport of a client."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import httpx
from typer.testing import CliRunner, Result

from tlm_client.cli import app
from tlm_client.client import TLMClient
from tlm_client.console import Session
from tlm_core.training.recipe import resolve

URL = "http://gateway.test"
Handler = Callable[[httpx.Request], httpx.Response]


def client_of(handler: Handler, **options: Any) -> TLMClient:
    """Return a client that sends its requests to `handler` and never sleeps."""
    return TLMClient(URL, "secret", transport=httpx.MockTransport(handler), **{"sleep": lambda _: None, **options})


def problem(status: int, code: str, detail: str, **fields: Any) -> httpx.Response:
    body = {"type": f"/docs/errors#{code}", "title": "x", "status": status, "detail": detail, "code": code, **fields}
    return httpx.Response(status, json=body, headers={"Content-Type": "application/problem+json"})


def job_summary(**fields: Any) -> dict[str, Any]:
    return {
        "id": "job_1", "kind": "train", "state": "queued", "dataset": "toy", "corpus": "docs", "scale": "tiny",
        "recipe": "fast", "seeds": [0], "metadata": {}, "priority": 0, "origin": None, "attempt": 0, "failures": 0,
        "created_at": 1.0, "updated_at": 1.0, "started_at": None, "finished_at": None, "progress": None, "error": None,
        **fields,
    }  # fmt: skip


def job_view(**fields: Any) -> dict[str, Any]:
    return job_summary() | {
        "spec": {"dataset": "toy", "corpus": "docs", "seeds": [0]}, "dataset_id": "ds_1", "dataset_digest": "0" * 64,
        "corpus_version": "v1", "resolved_recipe": resolve("fast", "tiny").model_dump(mode="json"),
        "stages": [{"name": "validate", "stage": "validate", "place": "coordinator", "needs": [], "done": True}],
        "last_event": 1, **fields,
    }  # fmt: skip


def load_view(**fields: Any) -> dict[str, Any]:
    return {
        "id": "load_1", "corpus": "docs", "language": "en", "near_duplicates": "drop", "sources": [],
        "state": "queued", "version": None, "done": 0, "total": 0, "error": None, "created_at": 1.0, **fields,
    }  # fmt: skip


def dataset_view(**fields: Any) -> dict[str, Any]:
    return {
        "id": "ds_1", "name": "toy", "version": 1, "digest": "d", "options": {}, "rows": {"train": 1}, "labels": 1,
        "warnings": 0, "created_at": 1.0, "report": {}, **fields,
    }  # fmt: skip


def report() -> dict[str, Any]:
    scores = {"macro_f1": 0.5, "micro_f1": 0.6, "accuracy": 0.6}
    none = {"test": dict.fromkeys(scores), "reason": "one run has no spread"}
    models = {"linear": 0.4, "encoder": 0.45, "combined": 0.5}
    return {
        "metric": "macro_f1",
        "seeds": [{"seed": 3, "test": scores}],
        "mean": {"test": scores},
        "spread": none,
        "returned": {
            "model": "combined",
            "seeds": [3],
            "reason": "It has the lowest loss on validation (0.7000).",
            "scores": {"test": scores},
        },
        "best_seed": 3,
        "models": {name: {"mean": {"test": {**scores, "macro_f1": f1}}, "spread": none} for name, f1 in models.items()},
        "gain": {"words": "On test the returned model is better than the linear model."},
        "majority": {"test": {"macro_f1": 0.1, "micro_f1": 0.3, "accuracy": 0.3}},
        "cost": {"total": {"flops": 1e12, "tokens": 1000.0, "seconds": 12.0}},
    }


def event(seq: int, kind: str = "job.queued", **data: Any) -> str:
    body = {"seq": seq, "type": kind, "at": 1.0, "attempt": 1, "data": data}
    return f"id: {seq}\nevent: {kind}\ndata: {json.dumps(body)}\n\n"


def end(state: str = "succeeded") -> str:
    return f'event: end\ndata: {{"state": "{state}"}}\n\n'


def event_stream(text: str, cut: int | None = None) -> httpx.Response:
    """Return a response of server-sent events that breaks after `cut` bytes."""
    headers = {"Content-Type": "text/event-stream"}
    return httpx.Response(200, headers=headers, stream=CutStream(text.encode(), cut))


class CutStream(httpx.SyncByteStream):
    """Sends `data` in small pieces and breaks the connection after `cut` bytes."""

    def __init__(self, data: bytes, cut: int | None = None) -> None:
        self._data = data
        self._cut = cut

    def __iter__(self) -> Iterator[bytes]:
        sent = self._data if self._cut is None else self._data[: self._cut]
        for start in range(0, len(sent), 1000):
            yield sent[start : start + 1000]
        if self._cut is not None and self._cut < len(self._data):
            raise httpx.ReadError("the connection broke")


class FileServer:
    """Serves one file with Range and If-Range. cuts: the share of the body after which each connection breaks."""

    def __init__(self, content: bytes, *, name: str = "model/model.safetensors", cuts: Sequence[float] = ()) -> None:
        self.content = content
        self.name = name
        self.cuts = list(cuts)
        self.ranges: list[str | None] = []

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/model"):
            entry = {"name": self.name, "size": len(self.content), "sha256": self.sha256}
            return httpx.Response(200, json={"digest": "d", "size": len(self.content), "files": [entry]})
        requested = request.headers.get("Range")
        self.ranges.append(requested)
        start = 0
        if requested is not None and request.headers.get("If-Range") in (None, f'"{self.sha256}"'):
            start = int(requested.removeprefix("bytes=").removesuffix("-"))
        body = self.content[start:]
        cut = int(self.cuts.pop(0) * len(body)) if self.cuts else None
        headers = {"Content-Length": str(len(body)), "ETag": f'"{self.sha256}"'}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(self.content) - 1}/{len(self.content)}"
        return httpx.Response(206 if start else 200, headers=headers, stream=CutStream(body, cut))


def tlm(handler: Handler, *arguments: str, **over: Any) -> Result:
    session = Session(**{"url": URL, "token": "secret", "transport": httpx.MockTransport(handler), **over})
    return CliRunner().invoke(app, list(arguments), obj=session)


def serve(answers: dict[str, Any]) -> Handler:
    """Return a handler that answers `METHOD /path` with a response or with JSON."""

    def handler(request: httpx.Request) -> httpx.Response:
        answer = answers[f"{request.method} {request.url.path}"]
        return answer if isinstance(answer, httpx.Response) else httpx.Response(200, json=answer)

    return handler


def unreachable(_: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("connection refused")
