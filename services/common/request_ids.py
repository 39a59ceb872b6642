"""The id of each request, in its response and its log lines, and the duration of the request as a metric.

Each response with an error status causes a log line with the id of the request. Exception: a response of `/readyz` with
an unchanged status causes no log line, because probes repeat this request every few seconds.
"""

from __future__ import annotations

import logging
import re
import time
from http import HTTPMethod

from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.common.logs import log_context
from services.common.metrics import REQUESTS
from tlm_core.names import new_id

log = logging.getLogger(__name__)

HEADER = "X-Request-ID"
_VALID = re.compile(rb"[A-Za-z0-9._-]{1,100}")


class RequestIds:
    """ASGI middleware that gives each request an id: the header X-Request-ID if it is valid, or else a new id."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._readiness = 200  # the last status of /readyz

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(HEADER.lower().encode(), b"")
        request_id = given.decode() if _VALID.fullmatch(given) else new_id("req")

        began = time.perf_counter()

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                # Clients choose paths and methods. As labels, their values would fill Prometheus with series.
                route = getattr(scope.get("route"), "path", "none")
                method = scope["method"] if scope["method"] in HTTPMethod.__members__ else "other"
                status, seconds = message["status"], time.perf_counter() - began
                REQUESTS.labels(method, route, status).observe(seconds)
                if status >= 400 and (route != "/readyz" or status != self._readiness):
                    job = scope.get("path_params", {}).get("job")
                    ids = {} if job is None else {"job_id": job}
                    with log_context(method=method, route=route, status=status, ms=round(1000 * seconds), **ids):
                        log.info("Error answer")
                if route == "/readyz":
                    self._readiness = status
                message["headers"] = [*message.get("headers", ()), (HEADER.lower().encode(), request_id.encode())]
            await send(message)

        with log_context(request_id=request_id):
            await self._app(scope, receive, send_with_id)


class App(FastAPI):
    """A FastAPI application with `RequestIds` as outermost layer. So responses to unexpected errors have an id too."""

    def build_middleware_stack(self) -> ASGIApp:
        return RequestIds(super().build_middleware_stack())
