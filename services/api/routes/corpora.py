"""Corpora: upload, progress of loads, versions, search."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request, Response
from fastapi import Path as PathParam
from pydantic import ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from services.api.auth import Tenant
from services.api.forms import receive_form
from services.api.intake import CORPUS_FIELDS, add_corpus
from services.api.parts import AfterId, Limit, PartsDep, RequestBody, form_body, problems
from services.api.removal import delete_corpus
from services.api.views import corpus_view, load_view
from tlm_core.corpus.states import NearDuplicatesChoice
from tlm_core.wire import Corpus, CorpusLoad, Items, Page, RefusedPassage, SearchResult

router = APIRouter(prefix="/v1/corpora", tags=["corpora"])

Name = Annotated[str, PathParam(max_length=200)]

_FORM = form_body(
    {
        "name": {"type": "string"},
        "language": {"type": "string", "default": "en", "description": "ISO 639 code."},
        "near_duplicates": {
            "enum": ["drop", "keep"],
            "default": "drop",
            "description": "Whether to drop or keep a passage that is nearly equal to an earlier passage.",
        },
        "files": {
            "type": "array",
            "items": {"type": "string", "format": "binary"},
            "description": "jsonl, csv, tsv, txt, md, rst (optionally .gz, .zst), or parquet.",
        },
    },
    ["name", "files"],
    {"name": "docs", "language": "en", "files": ["@passages.parquet"]},
)


class CorpusBody(RequestBody):
    """The name and the options of a corpus."""

    name: str = Field(max_length=200)
    language: str = Field("en", max_length=20)
    near_duplicates: NearDuplicatesChoice = "drop"


class CorpusOfSources(CorpusBody):
    """A corpus that the service fetches. sources: addresses of files or folders, or ids on the hub."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "docs", "sources": ["s3://texts/articles/"]}]})

    sources: tuple[str, ...] = Field(min_length=1, max_length=1000)


class SearchBody(RequestBody):
    """A query to a corpus. k: the maximum number of passages. version: by default, the newest ready version."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"query": "relation between two entities", "k": 5}]})

    query: str = Field(min_length=1, max_length=20_000)
    k: int = Field(10, ge=1, le=100)
    version: str | None = Field(None, max_length=64)


@router.post(
    "", status_code=202, summary="Upload a corpus", openapi_extra=_FORM, responses=problems(400, 409, 413, 415, 507)
)
async def create(request: Request, parts: PartsDep, tenant: Tenant) -> CorpusLoad:
    """Store the files and return a load. The service then splits and indexes the files. The load shows the progress.

    For an existing corpus, the load creates a new version, whose name is a hash of its content. A corpus has at most
    one active load.
    """
    async with receive_form(parts, request, fields=CORPUS_FIELDS, files=("files",)) as form:
        name, language = form.field("name"), form.field("language", "en")
        near = form.field("near_duplicates", "drop")
        load = await run_in_threadpool(add_corpus, parts, tenant, name, language, form.files, near)
    return load_view(load)


@router.post("/from-sources", status_code=202, summary="Fetch a corpus", responses=problems(409, 413, 415, 507))
def fetch(body: CorpusOfSources, parts: PartsDep, tenant: Tenant) -> CorpusLoad:
    """Create a load that fetches files from addresses that the operator allows, and return the load.

    If the service cannot fetch a file, the load fails with the reason. The load waits for unavailable components.
    """
    load = add_corpus(
        parts, tenant, body.name, body.language, near_duplicates=body.near_duplicates, sources=body.sources
    )
    return load_view(load)


@router.get("", summary="List corpora", responses=problems())
def list_all(parts: PartsDep, tenant: Tenant, after: AfterId = None, limit: Limit = 20) -> Page[Corpus]:
    """Return the corpora in the order of their names. For the next page, set `after` to the last name."""
    corpora, has_more = parts.catalog.corpora(tenant, after=after, limit=limit)
    views = tuple(corpus_view(corpus, parts.catalog.loads(tenant, corpus.name, limit=1)) for corpus in corpora)
    return Page(data=views, has_more=has_more)


@router.get("/{corpus}", summary="Get a corpus", responses=problems(404))
def get(corpus: Name, parts: PartsDep, tenant: Tenant) -> Corpus:
    """Return the versions of a corpus and the progress of its latest loads."""
    # Read the loads first, so that the answer contains the version of each ready load.
    loads = parts.catalog.loads(tenant, corpus)
    return corpus_view(parts.catalog.corpus(tenant, corpus), loads)


@router.get("/{corpus}/loads/{load}", summary="Get a load", responses=problems(404))
def get_load(corpus: Name, load: str, parts: PartsDep, tenant: Tenant) -> CorpusLoad:
    """Return the progress of one load."""
    return load_view(parts.catalog.load_of(tenant, corpus, load))


@router.post("/{corpus}/loads/{load}/cancel", summary="Cancel a load", responses=problems(404, 409))
def cancel_load(corpus: Name, load: str, parts: PartsDep, tenant: Tenant) -> CorpusLoad:
    """Cancel a load. The load is `cancelling` until its index and files are deleted, then `cancelled`. Safe to repeat.

    Earlier versions stay. While the retriever or the index is unavailable, the load stays `cancelling`.
    """
    return load_view(parts.catalog.cancel_load(tenant, parts.catalog.load_of(tenant, corpus, load).id))


@router.get("/{corpus}/versions/{version}/refused", summary="List refused passages", responses=problems(404))
def refused(corpus: Name, version: str, parts: PartsDep, tenant: Tenant) -> Items[RefusedPassage]:
    """Return the passages of a version that the index refused, with the reasons."""
    record = parts.catalog.corpus(tenant, corpus).version(version)
    passages = parts.retriever.refused(tenant, corpus, version) if record.refused else []
    return Items[RefusedPassage](data=tuple(passages))


@router.delete(
    "/{corpus}/versions/{version}", status_code=204, summary="Delete a version", responses=problems(404, 409)
)
def delete_version(corpus: Name, version: str, parts: PartsDep, tenant: Tenant) -> Response:
    """Delete index and passages of a version. Return 409 during a load, and if an unfinished job uses the version."""
    delete_corpus(parts, tenant, corpus, version)
    return Response(status_code=204)


@router.delete("/{corpus}", status_code=204, summary="Delete a corpus", responses=problems(404, 409))
def delete(corpus: Name, parts: PartsDep, tenant: Tenant) -> Response:
    """Delete a corpus with all versions. Return 409 during a load, and if an unfinished job uses the corpus."""
    delete_corpus(parts, tenant, corpus)
    return Response(status_code=204)


@router.post("/{corpus}/search", summary="Search a corpus", responses=problems(404, 409, 413, 415))
def search(corpus: Name, body: SearchBody, parts: PartsDep, tenant: Tenant) -> SearchResult:
    """Return the passages with the highest BM25 scores, ranked as in the selection of a job."""
    return parts.search(tenant, corpus, body.version, body.query, body.k)
