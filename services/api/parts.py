"""What the routes work with, put together once per process."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any

from fastapi import Depends, Query, Request

from services.api.datasets import LoadTask
from services.api.estimate import Estimator
from services.api.loads import LoadWorker
from services.api.outgoing import Outgoing
from services.api.predict import Predictor
from services.api.resumable import Uploads
from services.api.settings import ApiSettings
from services.api.tail import Tailer
from services.api.webhooks import Deliverer, Webhooks
from services.common.catalog import Catalog
from services.common.jobstore import JobStore
from services.common.retriever_client import RetrieverClient
from tlm_core.artifacts import ArtifactStore


@dataclass(frozen=True)
class Parts:
    """The gateway's stores and clients; load_task: reads and checks a data set (tlm_core.tasks)."""

    settings: ApiSettings
    token: str
    jobs: JobStore
    catalog: Catalog
    artifacts: ArtifactStore
    retriever: RetrieverClient
    tailer: Tailer
    predictor: Predictor
    loads: LoadWorker
    load_task: LoadTask
    uploads: Uploads
    webhooks: Webhooks
    outgoing: Outgoing
    deliverer: Deliverer

    @cached_property
    def estimator(self) -> Estimator:
        """One for the process, since it keeps what finished jobs took."""
        return Estimator(self.catalog, self.jobs, self.artifacts)


def _parts(request: Request) -> Parts:
    parts: Parts = request.app.state.parts
    return parts


PartsDep = Annotated[Parts, Depends(_parts)]
Limit = Annotated[int, Query(ge=1, le=100, description="at most so many")]
AfterId = Annotated[str | None, Query(max_length=200, description="id of the last one of the page before")]
# Redis takes numbers up to 2^64 - 1, which has 20 digits; milliseconds and counts do not come near.
STREAM_ID = r"^[0-9]{1,19}(-[0-9]{1,19})?$"
StreamId = Annotated[str, Query(pattern=STREAM_ID, description="`id` of the last one of the page before")]


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The error answers of a route, for its documentation."""
    return {
        status: {
            "description": _MEANING[status],
            "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        for status in (401, *statuses, 422, 500, 503)
    }


_MEANING = {
    400: "not an HTTP request that can be understood",
    401: "no token, or one that is not known",
    404: "not there",
    409: "not possible in the present state",
    413: "the body is too large",
    415: "not the media type that this takes",
    416: "the range lies beyond the file",
    422: "what was sent cannot be accepted; `errors` names each fault",
    500: "a fault of the service",
    503: "a component does not answer now; try again",
    507: "the storage is full",
}

FILE_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "the file",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    },
    206: {"description": "the part of it that Range asked for"},
    **problems(400, 404, 409, 416),
}
