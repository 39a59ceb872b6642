"""Corpora: upload, progress of the load, versions, a search box."""

from __future__ import annotations

import re
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, cast, get_args

from fastapi import APIRouter, Request, Response
from fastapi import Path as PathParam
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from services.api.auth import Tenant
from services.api.corpus_removal import delete_corpus
from services.api.parts import AfterId, Limit, Parts, PartsDep, problems
from services.api.removal import taken_back
from services.api.sources import check_sources
from services.api.uploads import ReceivedFile, received
from services.api.views import corpus_view, load_view
from services.common.catalog import ready_version
from services.common.catalog_records import CorpusLoad
from tlm_core import wire
from tlm_core.artifacts import storage_errors
from tlm_core.errors import InvalidRequest
from tlm_core.jobs.spec import NAME_PATTERN
from tlm_core.wire import Corpus, Items, NearDuplicatesChoice, Page, RefusedPassage, SearchResult

router = APIRouter(prefix="/v1/corpora", tags=["corpora"])

Name = Annotated[str, PathParam(max_length=200)]

_FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["name", "files"],
                    "properties": {
                        "name": {"type": "string"},
                        "language": {"type": "string", "default": "en", "description": "ISO 639 code"},
                        "near_duplicates": {"enum": ["drop", "keep"], "default": "drop",
                                            "description": "what becomes of passages nearly equal to an earlier one"},
                        "files": {"type": "array", "items": {"type": "string", "format": "binary"},
                                  "description": "jsonl, csv, tsv, txt, md, rst (also .gz, .zst) or parquet"},
                    },
                },
                "example": {"name": "docs", "language": "en", "files": ["@passages.parquet"]},
            }
        },
    }
}  # fmt: skip


class CorpusBody(BaseModel):
    """Name and options of a corpus."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(max_length=200)
    language: str = Field("en", max_length=20)
    near_duplicates: NearDuplicatesChoice = "drop"


class CorpusOfSources(CorpusBody):
    """A corpus that the service fetches. sources: addresses of files or folders, or ids on the hub."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "docs", "sources": ["s3://texts/articles/"]}]})

    sources: tuple[str, ...] = Field(min_length=1, max_length=1000)


class SearchBody(BaseModel):
    """A query against a corpus."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        json_schema_extra={"examples": [{"query": "relation between two entities", "k": 5}]},
    )

    query: str = Field(min_length=1, max_length=20_000)
    k: int = Field(10, ge=1, le=100)
    version: str | None = Field(None, max_length=64)


@router.post(
    "", status_code=202, summary="Upload a corpus", openapi_extra=_FORM, responses=problems(400, 409, 413, 415, 507)
)
async def create(request: Request, parts: PartsDep, tenant: Tenant) -> wire.CorpusLoad:
    """Answers as soon as the upload is safe; cutting and indexing follow. Look at the corpus to see how far they are.

    Under a name that exists it becomes a new version, named by its content. One upload of a corpus at a time.
    """
    async with received(
        request,
        parts.settings.scratch,
        max_bytes=parts.settings.max_upload_bytes,
        fields=("name", "language", "near_duplicates"),
        files=("files",),
    ) as upload:
        name, language = upload.field("name"), upload.field("language", "en")
        near = upload.field("near_duplicates", "drop")
        load = await run_in_threadpool(take_in, parts, tenant, name, language, upload.files, near)
    parts.loads.wake()
    return load_view(load)


@router.post("/from-sources", status_code=202, summary="Fetch a corpus", responses=problems(409, 413, 507))
def fetch(body: CorpusOfSources, parts: PartsDep, tenant: Tenant) -> wire.CorpusLoad:
    """The service fetches the files itself, where its operator allows it; it answers before it has begun to.

    What cannot be fetched fails the load with the reason; a store that is away for a while is waited for.
    """
    check_sources(body.sources, parts.settings.sources)
    load = take_in(parts, tenant, body.name, body.language, (), body.near_duplicates, body.sources)
    parts.loads.wake()
    return load_view(load)


@router.get("", summary="List corpora", responses=problems())
def list_all(parts: PartsDep, tenant: Tenant, after: AfterId = None, limit: Limit = 20) -> Page[Corpus]:
    """By name; ask for the next page with `after` = name of the last one."""
    corpora, more = parts.catalog.corpora(tenant, after=after, limit=limit)
    views = tuple(corpus_view(c, parts.catalog.loads(tenant, c.name, limit=1)) for c in corpora)
    return Page(data=views, has_more=more)


@router.get("/{corpus}", summary="One corpus", responses=problems(404))
def get(corpus: Name, parts: PartsDep, tenant: Tenant) -> Corpus:
    """Its versions, and how far the latest loads are."""
    # Loads first: whoever sees one that is ready sees its version as well.
    loads = parts.catalog.loads(tenant, corpus)
    return corpus_view(parts.catalog.corpus(tenant, corpus), loads)


@router.get("/{corpus}/loads/{load}", summary="One load", responses=problems(404))
def get_load(corpus: Name, load: str, parts: PartsDep, tenant: Tenant) -> wire.CorpusLoad:
    """How far one upload is on its way into the index."""
    return load_view(parts.catalog.load_of(tenant, corpus, load))


@router.post("/{corpus}/loads/{load}/cancel", summary="Cancel a load", responses=problems(404, 409))
def cancel_load(corpus: Name, load: str, parts: PartsDep, tenant: Tenant) -> wire.CorpusLoad:
    """`cancelling` until nothing of it is left, neither index nor files, then `cancelled`. Twice is no error.

    Versions from before stay as they are. While the retriever or the index is away, the load stays `cancelling`.
    """
    asked = parts.catalog.cancel_load(tenant, parts.catalog.load_of(tenant, corpus, load).id)
    parts.loads.wake()
    return load_view(asked)


@router.get("/{corpus}/versions/{version}/refused", summary="Passages left out", responses=problems(404))
def refused(corpus: Name, version: str, parts: PartsDep, tenant: Tenant) -> Items[RefusedPassage]:
    """The passages of a version that the index will never take, each with the reason."""
    known = parts.catalog.corpus(tenant, corpus).version(version)
    found = parts.retriever.refused(tenant, corpus, version) if known.refused else []
    return Items[RefusedPassage](data=tuple(found))


@router.delete("/{corpus}/versions/{version}", status_code=204, summary="Drop a version", responses=problems(404, 409))
def delete_version(corpus: Name, version: str, parts: PartsDep, tenant: Tenant) -> Response:
    """Drop one version: its index and its passages. Refused while a job that is not over selects from it."""
    delete_corpus(parts, tenant, parts.catalog.corpus(tenant, corpus), version)
    return Response(status_code=204)


@router.delete("/{corpus}", status_code=204, summary="Delete a corpus", responses=problems(404, 409))
def delete(corpus: Name, parts: PartsDep, tenant: Tenant) -> Response:
    """Delete a corpus with all its versions. Refused while it is being loaded, or a job that is not over needs it."""
    delete_corpus(parts, tenant, parts.catalog.corpus(tenant, corpus))
    return Response(status_code=204)


@router.post("/{corpus}/search", summary="Try a corpus", responses=problems(404, 409, 413))
def search(corpus: Name, body: SearchBody, parts: PartsDep, tenant: Tenant) -> SearchResult:
    """The passages that BM25 finds for a query, as the selection of a job would."""
    latest = parts.catalog.loads(tenant, corpus, limit=1)
    version = ready_version(parts.catalog.corpus(tenant, corpus), body.version, latest[0] if latest else None)
    hits = parts.retriever.search(tenant, corpus, version.version, body.query, body.k)
    return SearchResult(version=version.version, hits=tuple(hits))


def take_in(
    parts: Parts,
    tenant: str,
    name: str,
    language: str,
    files: tuple[ReceivedFile, ...],
    near_duplicates: str = "drop",
    sources: Sequence[str] = (),
) -> CorpusLoad:
    """Put the uploaded files into storage and record the load; from then on a restart takes it up again.

    sources: addresses that may be fetched from, in place of files or beside them.
    """
    from tlm_core.corpus.files import format_of

    if not re.fullmatch(NAME_PATTERN, name):
        raise InvalidRequest(
            f"'{name[:80]}' cannot be a name; use up to 63 letters, digits, dots, dashes and underscores"
        )
    if not re.fullmatch(r"[a-z]{2,3}", language):
        raise InvalidRequest(f"'{language[:20]}' is no language; give an ISO 639 code such as en, de or zh")
    if near_duplicates not in get_args(NearDuplicatesChoice):
        raise InvalidRequest(f"near_duplicates is '{near_duplicates[:20]}'; give drop or keep")
    if not files and not sources:
        raise InvalidRequest("the form lacks files; give at least one as 'files'")
    unread = [file.name for file in files if format_of(Path(file.name)) is None]
    if unread:
        raise InvalidRequest(
            f"'{unread[0]}' is not read by its ending; give jsonl, csv, tsv, txt, md, rst (also .gz, .zst) or parquet"
        )
    work = parts.settings.scratch / "work" / uuid.uuid4().hex
    folder = f"{tenant}/uploads/{uuid.uuid4().hex}"
    try:
        with storage_errors("keeping the upload"):
            work.mkdir(parents=True)
            for file in files:
                shutil.move(file.path, work / file.name)
        near = cast(NearDuplicatesChoice, near_duplicates)
        with taken_back(parts.artifacts, folder):
            upload = parts.artifacts.write(folder, work, artifact="upload", stage="corpus")
            return parts.catalog.add_load(tenant, name, language, upload, near, sources)
    finally:
        shutil.rmtree(work, ignore_errors=True)
