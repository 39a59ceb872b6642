"""Pages of datasets and corpora."""

from __future__ import annotations

import json
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse, Response
from starlette.concurrency import run_in_threadpool

from services.api.dashboard.present import colors
from services.api.dashboard.snippets import own_url, upload_snippets
from services.api.dashboard.web import PREFIX, Refused, SignedIn, form_page, page, redirect
from services.api.forms import by_field, receive_form
from services.api.intake import CORPUS_FIELDS, add_corpus, add_dataset, parse_options
from services.api.job_artifacts import file_response
from services.api.parts import AfterId, Parts, PartsDep
from services.api.removal import delete_dataset
from services.common.catalog_records import OPEN
from tlm_core.errors import TLMError
from tlm_core.tasks.metrics import METRICS

router = APIRouter()

UPLOAD_PATHS = (f"{PREFIX}/datasets", f"{PREFIX}/corpora")
_LIMIT = 25
_HITS = 20
_LABELS = 60
_SPLITS = ("train", "validation", "test")
_OPTIONS = ("text_column", "label_column", "text_pair_column", "delimiter", "metric", "language")
Search = Annotated[str, Query(max_length=2_000)]
Version = Annotated[str | None, Query(max_length=64)]


@router.get("/datasets")
def datasets(request: Request, parts: PartsDep, tenant: SignedIn, after: AfterId = None) -> Response:
    return _datasets(request, parts, tenant, after)


@router.post("/datasets")
async def upload(request: Request, parts: PartsDep, tenant: SignedIn) -> Response:
    """Add a dataset, and redirect to its page. After an error, show the error above the form with the typed values."""
    typed: dict[str, str] = {}
    try:
        async with receive_form(parts, request, fields=("name", *_OPTIONS), files=(*_SPLITS, "file")) as form:
            typed = form.fields
            name = form.field("name").strip()
            # Strip only blanks, because the delimiter can be a tab.
            given = {option: text for option in _OPTIONS if (text := form.field(option, "").strip(" "))}
            options = parse_options(json.dumps(given))
            files = by_field(form.selected_files())
            record = await run_in_threadpool(add_dataset, parts, tenant, name, files, options)
    except TLMError as error:
        return await run_in_threadpool(_datasets, request, parts, tenant, None, (typed, error))
    return redirect(request, f"{PREFIX}/datasets/{record.id}")


@router.get("/datasets/{dataset}")
def dataset(request: Request, dataset: str, parts: PartsDep, tenant: SignedIn) -> Response:
    """Show the validation report of a dataset: labels, lengths, warnings, first rows."""
    record = parts.catalog.dataset(tenant, dataset)
    report = parts.artifacts.read_json(record.report, "report.json")
    labels = report.get("labels") or []
    splits = [split for split in _SPLITS if split in (report.get("counts") or {})]
    most = max((row[split] or 0 for row in labels for split in splits), default=0)
    return page(
        request, "dataset.html", record=record, report=report, splits=splits, labels=labels[:_LABELS],
        colors=colors(row["label"] for row in labels),
        hidden_labels=max(0, len(labels) - _LABELS), most=most or 1, files=parts.artifacts.manifest(record.raw).files,
    )  # fmt: skip


@router.post("/datasets/{dataset}/delete")
def delete(request: Request, dataset: str, parts: PartsDep, tenant: SignedIn) -> Response:
    delete_dataset(parts, parts.catalog.dataset(tenant, dataset))
    return redirect(request, f"{PREFIX}/datasets")


@router.get("/datasets/{dataset}/files/{name:path}", response_class=FileResponse)
def dataset_file(dataset: str, name: str, parts: PartsDep, tenant: SignedIn) -> FileResponse:
    return file_response(parts.artifacts, parts.catalog.dataset(tenant, dataset).raw, name)


@router.get("/corpora")
def corpora(request: Request, parts: PartsDep, tenant: SignedIn, after: AfterId = None) -> Response:
    return _corpora(request, parts, tenant, after)


@router.post("/corpora")
async def upload_corpus(request: Request, parts: PartsDep, tenant: SignedIn) -> Response:
    """Add a corpus, and redirect to its page. After an error, show the error above the form with the typed values."""
    typed: dict[str, str] = {}
    try:
        async with receive_form(parts, request, fields=CORPUS_FIELDS, files=("files",)) as form:
            typed = form.fields
            name, language = form.field("name").strip(), form.field("language", "").strip() or "en"
            near, files = form.field("near_duplicates", "drop"), form.selected_files()
            load = await run_in_threadpool(add_corpus, parts, tenant, name, language, files, near)
    except TLMError as error:
        return await run_in_threadpool(_corpora, request, parts, tenant, None, (typed, error))
    return redirect(request, f"{PREFIX}/corpora/{load.corpus}")


@router.get("/corpora/{name}")
def corpus(
    request: Request, name: str, parts: PartsDep, tenant: SignedIn, q: Search = "", version: Version = None
) -> Response:
    """Show a corpus: its versions, its loads, and a search form."""
    return page(request, "corpus.html", _corpus(parts, tenant, name) | _search(parts, tenant, name, q, version))


@router.post("/corpora/{name}/loads/{load}/cancel")
def cancel_load(request: Request, name: str, load: str, parts: PartsDep, tenant: SignedIn) -> Response:
    """Cancel an active load."""
    parts.catalog.cancel_load(tenant, parts.catalog.load_of(tenant, name, load).id)
    return redirect(request, f"{PREFIX}/corpora/{name}")


@router.get("/corpora/{name}/live")
def corpus_live(request: Request, name: str, parts: PartsDep, tenant: SignedIn) -> Response:
    """Return the part of a corpus page that changes during a load."""
    return page(request, "_corpus_live.html", _corpus(parts, tenant, name))


@router.get("/corpora/{name}/search")
def corpus_search(
    request: Request, name: str, parts: PartsDep, tenant: SignedIn, q: Search = "", version: Version = None
) -> Response:
    """Return the part of a corpus page that shows the search results."""
    return page(request, "_hits.html", _search(parts, tenant, name, q, version))


def _datasets(request: Request, parts: Parts, tenant: str, after: str | None, refused: Refused = None) -> Response:
    """Show the list of datasets, and the form for uploads. refused: see `form_page`."""
    records, has_more = parts.catalog.datasets(tenant, after=after, limit=_LIMIT)
    command, fields = "tlm dataset add reviews train.csv", "-F name=reviews -F file=@train.csv"
    call = 'add_dataset("reviews", {"train": Path("train.csv")})'
    snippets = upload_snippets("/v1/datasets", command, fields, call, own_url(request))
    return form_page(
        request, "datasets.html", refused, records=records, more=has_more, after=after, snippets=snippets,
        metrics=METRICS,
    )  # fmt: skip


def _corpora(request: Request, parts: Parts, tenant: str, after: str | None, refused: Refused = None) -> Response:
    """Show the list of corpora, and the form for uploads. refused: see `form_page`."""
    records, has_more = parts.catalog.corpora(tenant, after=after, limit=_LIMIT)
    rows = [{"corpus": corpus, "ready": corpus.ready(), "loads": parts.catalog.loads(tenant, corpus.name, limit=1)}
            for corpus in records]  # fmt: skip
    command, fields = "tlm corpus add manuals texts.jsonl", "-F name=manuals -F language=en -F files=@texts.jsonl"
    call = 'add_corpus("manuals", [Path("texts.jsonl")])'
    snippets = upload_snippets("/v1/corpora", command, fields, call, own_url(request))
    return form_page(request, "corpora.html", refused, rows=rows, more=has_more, after=after, snippets=snippets)


def _corpus(parts: Parts, tenant: str, name: str) -> dict[str, object]:
    """Return the template values of a corpus, its versions and its latest loads."""
    record = parts.catalog.corpus(tenant, name)
    return {"corpus": record, "ready": record.ready(), "loads": parts.catalog.loads(tenant, name), "open": OPEN}


def _search(parts: Parts, tenant: str, name: str, q: str, version: str | None) -> dict[str, object]:
    """Return the template values of a search. After an error, `failure` is the error message, and `hits` is None."""
    values: dict[str, object] = {"q": q.strip(), "chosen": version, "hits": None, "failure": None}
    if q.strip():
        try:
            values["hits"] = parts.search(tenant, name, version or None, q.strip(), _HITS).hits
        except TLMError as error:
            values["failure"] = error.message
    return values
