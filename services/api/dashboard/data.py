"""The pages of data sets and corpora."""

from __future__ import annotations

import json
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse, Response
from starlette.concurrency import run_in_threadpool

from services.api.dashboard.web import PREFIX, SignedIn, go_to, page
from services.api.datasets import Intake, check_dataset_name, report_of
from services.api.parts import AfterId, PartsDep
from services.api.removal import delete_dataset
from services.api.results import open_file
from services.api.routes.corpora import take_in
from services.api.routes.datasets import parse_options
from services.api.uploads import received, single
from services.common.catalog import ready_version
from services.common.catalog_records import OPEN
from tlm_core.errors import TLMError

router = APIRouter()

UPLOAD_PATHS = (f"{PREFIX}/datasets", f"{PREFIX}/corpora")
_LIMIT = 25
_HITS = 20
_LABELS = 60
_SPLITS = ("train", "validation", "test")
_COLUMNS = ("text_column", "label_column")


@router.get("/datasets")
def datasets(request: Request, parts: PartsDep, tenant: SignedIn, after: AfterId = None) -> Response:
    records, more = parts.catalog.datasets(tenant, after=after, limit=_LIMIT)
    return page(request, "datasets.html", records=records, more=more, after=after)


@router.post("/datasets")
async def upload(request: Request, parts: PartsDep, tenant: SignedIn) -> Response:
    """Take files in as the API does; a fault in them is shown with its row and column."""
    intake = Intake(parts.catalog, parts.artifacts, parts.settings.scratch, parts.load_task)
    async with received(
        request, parts.settings.scratch, max_bytes=parts.settings.max_upload_bytes, fields=("name", *_COLUMNS),
        files=(*_SPLITS, "file"),
    ) as form:  # fmt: skip
        name = form.field("name").strip()
        check_dataset_name(name)
        given = {column: text for column in _COLUMNS if (text := form.field(column, "").strip())}
        options = parse_options(json.dumps(given)).options()
        files = single(form.chosen())
        record = await run_in_threadpool(intake.files, tenant, name, files, options)
    return go_to(request, f"{PREFIX}/datasets/{record.id}")


@router.get("/datasets/{dataset}")
def dataset(request: Request, dataset: str, parts: PartsDep, tenant: SignedIn) -> Response:
    """What was found in a data set: its labels, lengths, warnings, first rows."""
    record = parts.catalog.dataset(tenant, dataset)
    report = report_of(parts.artifacts, record)
    labels = report.get("labels") or []
    splits = [split for split in _SPLITS if split in (report.get("counts") or {})]
    most = max((one[split] or 0 for one in labels for split in splits), default=0)
    return page(
        request, "dataset.html", record=record, report=report, splits=splits, labels=labels[:_LABELS],
        left_out=max(0, len(labels) - _LABELS), most=most or 1, files=parts.artifacts.manifest(record.raw).files,
    )  # fmt: skip


@router.post("/datasets/{dataset}/delete")
def delete(request: Request, dataset: str, parts: PartsDep, tenant: SignedIn) -> Response:
    delete_dataset(parts.jobs, parts.artifacts, parts.catalog.dataset(tenant, dataset))
    return go_to(request, f"{PREFIX}/datasets")


@router.get("/datasets/{dataset}/files/{name:path}", response_class=FileResponse)
def dataset_file(dataset: str, name: str, parts: PartsDep, tenant: SignedIn) -> FileResponse:
    return open_file(parts.artifacts, parts.catalog.dataset(tenant, dataset).raw, name)


@router.get("/corpora")
def corpora(request: Request, parts: PartsDep, tenant: SignedIn, after: AfterId = None) -> Response:
    records, more = parts.catalog.corpora(tenant, after=after, limit=_LIMIT)
    rows = [{"corpus": one, "ready": one.ready(), "loads": parts.catalog.loads(tenant, one.name, limit=1)}
            for one in records]  # fmt: skip
    return page(request, "corpora.html", rows=rows, more=more, after=after)


@router.post("/corpora")
async def upload_corpus(request: Request, parts: PartsDep, tenant: SignedIn) -> Response:
    """Take passages in as the API does; cutting and indexing follow, and the page of the corpus shows how far."""
    async with received(
        request, parts.settings.scratch, max_bytes=parts.settings.max_upload_bytes,
        fields=("name", "language", "near_duplicates"), files=("files",),
    ) as form:  # fmt: skip
        name, language = form.field("name").strip(), form.field("language", "").strip() or "en"
        near = form.field("near_duplicates", "drop")
        load = await run_in_threadpool(take_in, parts, tenant, name, language, form.chosen(), near)
    parts.loads.wake()
    return go_to(request, f"{PREFIX}/corpora/{load.corpus}")


@router.get("/corpora/{name}")
def corpus(
    request: Request,
    name: str,
    parts: PartsDep,
    tenant: SignedIn,
    q: Annotated[str, Query(max_length=2_000)] = "",
    version: Annotated[str | None, Query(max_length=64)] = None,
) -> Response:
    """A corpus with its versions, how far its loads are, and a box to try it."""
    return page(request, "corpus.html", **_corpus(parts, tenant, name), **_search(parts, tenant, name, q, version))


@router.post("/corpora/{name}/loads/{load}/cancel")
def cancel_load(request: Request, name: str, load: str, parts: PartsDep, tenant: SignedIn) -> Response:
    """End a load that is on its way; the page shows when nothing of it is left."""
    parts.catalog.cancel_load(tenant, parts.catalog.load_of(tenant, name, load).id)
    parts.loads.wake()
    return go_to(request, f"{PREFIX}/corpora/{name}")


@router.get("/corpora/{name}/live")
def corpus_live(request: Request, name: str, parts: PartsDep, tenant: SignedIn) -> Response:
    """The part of a corpus's page that changes while a load is under way."""
    return page(request, "_corpus_live.html", **_corpus(parts, tenant, name))


@router.get("/corpora/{name}/search")
def corpus_search(
    request: Request,
    name: str,
    parts: PartsDep,
    tenant: SignedIn,
    q: Annotated[str, Query(max_length=2_000)] = "",
    version: Annotated[str | None, Query(max_length=64)] = None,
) -> Response:
    """The passages that were found, as a part of the page."""
    return page(request, "_hits.html", **_search(parts, tenant, name, q, version))


def _corpus(parts: PartsDep, tenant: str, name: str) -> dict[str, Any]:
    record = parts.catalog.corpus(tenant, name)
    loads = parts.catalog.loads(tenant, name)
    return {"corpus": record, "ready": record.ready(), "loads": loads, "busy": any(one.state in OPEN for one in loads)}


def _search(parts: PartsDep, tenant: str, name: str, q: str, version: str | None) -> dict[str, Any]:
    """What a query finds; an error is a part of the page, since all else on it can still be read."""
    found: dict[str, Any] = {"q": q.strip(), "hits": None, "searched": None, "failure": None}
    if not found["q"]:
        return found
    latest = parts.catalog.loads(tenant, name, limit=1)
    try:
        chosen = ready_version(parts.catalog.corpus(tenant, name), version or None, latest[0] if latest else None)
        found["hits"] = parts.retriever.search(tenant, name, chosen.version, found["q"], _HITS)
        found["searched"] = chosen.version
    except TLMError as error:
        found["failure"] = error.message
    return found
