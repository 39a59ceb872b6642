"""The stores and clients of the gateway, and common parts of the routes: dependencies, pagination, OpenAPI entries."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated

from fastapi import Depends, Query, Request
from fastapi.dependencies.models import Dependant
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict

from services.api.estimate import Estimator
from services.api.intake import LoadTask
from services.api.models import Models
from services.api.outbound import Outbound
from services.api.predict import Predictor
from services.api.probes import Probes
from services.api.resumable_uploads import Uploads
from services.api.settings import ApiSettings
from services.api.streams import Tailer
from services.api.webhook_delivery import Deliverer, Webhooks
from services.common.background import Background
from services.common.catalog import Catalog
from services.common.jobstore import JobStore
from services.common.retriever_client import RetrieverClient
from tlm_core.artifacts.store import ArtifactStore
from tlm_core.fields import names_valid_fields
from tlm_core.wire import JsonObject, SearchResult


@dataclass(frozen=True)
class Parts:
    """The gateway's stores and clients. load_task: reads and validates a dataset (`tlm_core/tasks/validate.py`)."""

    settings: ApiSettings
    token: str
    jobs: JobStore
    catalog: Catalog
    artifacts: ArtifactStore
    retriever: RetrieverClient
    tailer: Tailer
    predictor: Predictor
    load_task: LoadTask
    uploads: Uploads
    webhooks: Webhooks
    outbound: Outbound
    deliverer: Deliverer
    models: Models
    removals: Background = field(default_factory=lambda: Background("removals"))
    probes: Probes = field(default_factory=Probes)

    @property
    def background(self) -> tuple[Background, ...]:
        """The background tasks of this gateway."""
        return (self.tailer.task, self.deliverer.task, self.removals)

    def search(self, tenant: str, corpus: str, version: str | None, query: str, k: int) -> SearchResult:
        """Return the `k` best passages for `query` in a version of a corpus, by default the newest ready version.

        Raises the errors of `Catalog.ready_version` and of the retriever.
        """
        ready = self.catalog.ready_version(tenant, corpus, version).version
        return SearchResult(version=ready, hits=tuple(self.retriever.search(tenant, corpus, ready, query, k)))

    @cached_property
    def estimator(self) -> Estimator:
        """The estimator of this process, which caches the measurements of finished jobs."""
        return Estimator(self.catalog, self.jobs, self.artifacts, self.settings.worker_gpus)


async def _parts(request: Request) -> Parts:  # A function without `async` would wait for a thread of the pool.
    return request.app.state.parts


PartsDep = Annotated[Parts, Depends(_parts)]


async def refuse_unknown_parameters(request: Request) -> None:
    """Raise RequestValidationError for query parameters that the route does not declare."""
    route = request.scope["route"]
    valid = _query_names(route.dependant) if isinstance(route, APIRoute) else set()
    advice = f"Valid parameters: {', '.join(sorted(valid))}." if valid else "This path has no query parameters."
    message = f"is not a known parameter. {advice}"
    errors = [
        {"type": "unknown_parameter", "loc": ("query", name), "msg": message}
        for name in dict.fromkeys(request.query_params)
        if name not in valid
    ]
    if errors:
        raise RequestValidationError(errors)


def _query_names(dependant: Dependant) -> set[str]:
    """Return the names of the query parameters of a route and its dependencies."""
    names = {field.alias for field in dependant.query_params}
    return names.union(*map(_query_names, dependant.dependencies))


class RequestBody(BaseModel):
    """The JSON body of a request. An unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    _names_valid_fields = names_valid_fields


Limit = Annotated[int, Query(ge=1, le=100, description="Maximum number of items.")]
AfterId = Annotated[str | None, Query(max_length=200, description="Id of the last item of the previous page.")]
# Redis accepts numbers below 2^64, so it accepts 19 digits. Milliseconds and counts have far fewer digits.
STREAM_ID = r"^[0-9]{1,19}(-[0-9]{1,19})?$"
StreamId = Annotated[str, Query(pattern=STREAM_ID, description="`id` of the last item of the previous page.")]

PROBLEM: dict[str, object] = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}

_DESCRIPTIONS = {
    400: "Malformed HTTP request.",
    401: "Missing or unknown API token.",
    404: "Not found.",
    409: "Not possible in the current state.",
    413: "Request body too large.",
    415: "Unsupported media type.",
    416: "Range outside the file.",
    422: "Invalid request. `errors` lists each problem.",
    500: "Internal error.",
    503: "A component does not respond. Retry later.",
    507: "Storage full.",
}


def problems(*statuses: int) -> dict[int | str, dict[str, object]]:
    """Return HTTP status → OpenAPI entry of an error response, for `statuses` and for 401, 422, 500 and 503."""
    return {
        status: {"description": _DESCRIPTIONS[status], "content": PROBLEM} for status in (401, *statuses, 422, 500, 503)
    }


def request_body(media_type: str, schema: JsonObject, example: object) -> JsonObject:
    """Return the OpenAPI entry {"requestBody": …} for a route that reads the body without FastAPI."""
    return {"requestBody": {"required": True, "content": {media_type: {"schema": schema, "example": example}}}}


def form_body(fields: JsonObject, required: list[str], example: object) -> JsonObject:
    """Return the OpenAPI entry of a multipart form. fields: name → JSON schema. required: names of required fields."""
    schema = {"type": "object", "required": required, "properties": fields}
    return request_body("multipart/form-data", schema, example)


def binary(example: str) -> JsonObject:
    """Return the OpenAPI description of a response that is a file. example: describes the content of the file."""
    return {"schema": {"type": "string", "format": "binary"}, "example": example}


FILE_ANSWERS: dict[int | str, dict[str, object]] = {
    200: {"description": "The file.", "content": {"application/octet-stream": binary("the bytes of the file")}},
    206: {"description": "The requested range of the file."},
    **problems(400, 404, 409, 416),
}
