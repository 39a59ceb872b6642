"""The ids of requests to the retriever."""

from __future__ import annotations

import io
import json
import logging
from unittest.mock import MagicMock

from fastapi.testclient import TestClient

from services.common.logs import set_up_logging
from services.retriever.app import create_app


def test_internal_error_has_the_request_id_in_answer_and_log() -> None:
    loads, lines, root = MagicMock(), io.StringIO(), logging.getLogger()
    loads.ready.side_effect = RuntimeError("defect")
    app = create_app(MagicMock(), loads, MagicMock(), token="secret", close=lambda: None)
    headers = {"Authorization": "Bearer secret", "X-Request-ID": "mine-1"}
    body = {"tenant": "t", "corpus": "c", "version": "v1", "query": "film", "k": 1}
    before = root.handlers, root.level
    set_up_logging("retriever", stream=lines)
    try:
        answer = TestClient(app, raise_server_exceptions=False).post("/v1/search", json=body, headers=headers)
    finally:
        root.handlers, root.level = before
    logged = [json.loads(line) for line in lines.getvalue().splitlines()]
    traced, answered = (
        [line.get("request_id") for line in logged if part in str(line)] for part in ("Traceback", "Error answer")
    )
    assert (answer.status_code, answer.headers.get("X-Request-ID")) == (500, "mine-1")
    assert "the cause of the request mine-1." in answer.json()["detail"]
    assert traced == answered == ["mine-1"]
