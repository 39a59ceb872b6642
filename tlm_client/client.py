"""The Python client of the API: `with TLMClient(url, token) as tlm: job = tlm.submit(JobSpec(dataset="reviews"))`."""

from __future__ import annotations

import ipaddress
import json
import random
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ValidationError

from tlm_client.download import Part, fetch_file
from tlm_client.events import follow
from tlm_client.models import (
    Corpus,
    CorpusLoad,
    Dataset,
    DryRun,
    Estimate,
    Hit,
    Job,
    JobEvent,
    JobSummary,
    ModelFile,
    Prediction,
)
from tlm_client.problems import error_of
from tlm_core.errors import TLMError, Unavailable, error_from_dict
from tlm_core.jobs.spec import JobSpec

_Model = TypeVar("_Model", bound=BaseModel)
_PAGE = 100
_POLL_SECONDS = 0.5
# Until a large upload has been checked and stored, nothing is answered.
_CHECKING_SECONDS = 900.0


class TLMClient:
    """Calls of one gateway. Thread-safe; close it, or use it in a `with` block.

    timeout: seconds without any byte before an answer is given up. tries: how often a request that can safely be
    repeated is sent when the gateway does not answer. transport, sleep: for tests.
    Every method raises the errors of tlm_core.errors: what the gateway says, and Unavailable if it does not answer.
    """

    def __init__(
        self,
        url: str,
        token: str,
        *,
        timeout: float = 60.0,
        tries: int = 4,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.url = url.rstrip("/")
        self._http = httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {token}"},
            timeout=httpx.Timeout(timeout, connect=5.0),
            transport=transport,
            # A proxy of the environment knows nothing of this machine's loopback.
            trust_env=not _is_loopback(self.url),
        )
        self._tries = tries
        self._sleep = sleep

    def __enter__(self) -> TLMClient:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _value: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    # --- data sets ------------------------------------------------------------------------------------------------

    def add_dataset(self, name: str, files: Mapping[str, Path], options: Mapping[str, Any] | None = None) -> Dataset:
        """Upload a data set: `files` by split (train, and validation and test if there are). Options: DatasetOptions.

        Raises InvalidDataset with every fault found, by split, row and column.
        """
        form = {"name": name, "options": json.dumps(dict(options or {}))}
        return self._model(Dataset, self._upload("/v1/datasets", form, list(files.items())))

    def add_hub_dataset(self, name: str, hub: str, options: Mapping[str, Any] | None = None) -> Dataset:
        """Let the gateway load `hub:OWNER/NAME[@revision][:config]`."""
        body = {"name": name, "hub": hub.removeprefix("hub:"), "options": dict(options or {})}
        return self._model(Dataset, self._call("POST", "/v1/datasets/hub", json=body, timeout=_patient()))

    def datasets(self) -> Iterator[Dataset]:
        """All data sets, newest first."""
        return self._pages(Dataset, "/v1/datasets", lambda dataset: dataset.id)

    def dataset(self, id_or_name: str) -> Dataset:
        return self._model(Dataset, self._call("GET", f"/v1/datasets/{_quoted(id_or_name)}", repeat=True))

    def dataset_report(self, id_or_name: str) -> dict[str, Any]:
        """The validation report: labels, counts, lengths, duplicates, warnings, and what was guessed and why."""
        return dict(self._call("GET", f"/v1/datasets/{_quoted(id_or_name)}/report", repeat=True))

    def download_dataset(self, id_or_name: str, folder: Path) -> list[Path]:
        """Fetch the files of a data set as they were uploaded, named by their split, checked by SHA-256."""
        base = f"/v1/datasets/{_quoted(id_or_name)}/files"
        entries = [self._model(ModelFile, entry) for entry in self._call("GET", base, repeat=True)["data"]]
        return [self._fetch(base, entry, folder) for entry in entries]

    def delete_dataset(self, dataset_id: str) -> None:
        self._call("DELETE", f"/v1/datasets/{_quoted(dataset_id)}")

    # --- corpora --------------------------------------------------------------------------------------------------

    def add_corpus(self, name: str, files: Sequence[Path], language: str = "en") -> CorpusLoad:
        """Upload files as the next version of a corpus; `wait_corpus` tells when it can be used."""
        form = {"name": name, "language": language}
        return self._model(CorpusLoad, self._upload("/v1/corpora", form, [("files", path) for path in files]))

    def wait_corpus(
        self, name: str, load_id: str, on_progress: Callable[[CorpusLoad], None] | None = None
    ) -> CorpusLoad:
        """Wait until an upload can be used. Raises the error for which it failed."""
        while True:
            load = next((load for load in self.corpus(name).loads if load.id == load_id), None)
            if load is None:
                raise TLMError(f"the gateway does not tell of load {load_id} of corpus '{name}' any more; add it again")
            if on_progress is not None:
                on_progress(load)
            if load.state == "ready":
                return load
            if load.state == "failed":
                raise error_from_dict(load.error) if load.error else TLMError(f"loading corpus '{name}' failed")
            self._sleep(_POLL_SECONDS)

    def corpora(self) -> Iterator[Corpus]:
        """All corpora by name."""
        return self._pages(Corpus, "/v1/corpora", lambda corpus: corpus.name)

    def corpus(self, name: str) -> Corpus:
        return self._model(Corpus, self._call("GET", f"/v1/corpora/{_quoted(name)}", repeat=True))

    def delete_corpus(self, name: str, version: str | None = None) -> None:
        """Delete a corpus, or one version of it. Raises Conflict while a job that is not over needs it."""
        part = f"/versions/{_quoted(version)}" if version else ""
        self._call("DELETE", f"/v1/corpora/{_quoted(name)}{part}")

    def search(self, name: str, query: str, k: int = 10) -> list[Hit]:
        """The best passages of a corpus for a query, best first."""
        found = self._call("POST", f"/v1/corpora/{_quoted(name)}/search", json={"query": query, "k": k}, repeat=True)
        return [self._model(Hit, hit) for hit in found["hits"]]

    # --- jobs -----------------------------------------------------------------------------------------------------

    def submit(self, spec: JobSpec, *, key: str | None = None) -> Job:
        """Submit a job; it is stored durably when this returns.

        key: the idempotency key, a fresh one by default; a repeated request cannot make a second job.
        """
        headers = {"Idempotency-Key": key or str(uuid.uuid4())}
        return self._model(Job, self._call("POST", "/v1/jobs", json=_body(spec), headers=headers, repeat=True))

    def dry_run(self, spec: JobSpec) -> DryRun:
        """What submitting would mean and cost, checked as a submission is; no job is made."""
        answer = self._call("POST", "/v1/jobs", json=_body(spec), params={"dry_run": True}, repeat=True)
        return self._model(DryRun, answer)

    def estimate(self, spec: JobSpec) -> Estimate:
        """What a job would take: seconds, FLOPs, memory, disk, GPU-hours, passages; None where that is not known."""
        return self._model(Estimate, self._call("POST", "/v1/jobs/estimate", json=_body(spec), repeat=True))

    def jobs(self, state: str | None = None) -> Iterator[JobSummary]:
        """Jobs, newest first, of one state or of all."""
        return self._pages(JobSummary, "/v1/jobs", lambda job: job.id, {"state": state} if state else {})

    def job(self, job_id: str) -> Job:
        return self._model(Job, self._call("GET", f"/v1/jobs/{_quoted(job_id)}", repeat=True))

    def cancel(self, job_id: str) -> Job:
        """Two-phase: `cancelling` until nothing of the job runs any more. Cancelling twice is no error."""
        return self._verb(job_id, "cancel")

    def pause(self, job_id: str) -> Job:
        """`paused` follows when the worker has left a checkpoint."""
        return self._verb(job_id, "pause")

    def resume(self, job_id: str) -> Job:
        return self._verb(job_id, "resume")

    def events(self, job_id: str, *, after: int = 0, patience: float = 120.0) -> Iterator[JobEvent]:
        """The job's events with seq > after, and progress snapshots between them, until the job is over.

        A broken connection is taken up where it ended. That the iterator ends says nothing about how the job ended:
        ask `job`. patience: seconds without the gateway after which Unavailable is raised.
        """
        return follow(self._http, f"/v1/jobs/{_quoted(job_id)}/events", after, patience=patience, sleep=self._sleep)

    def wait(self, job_id: str, on_event: Callable[[JobEvent], None] | None = None, *, patience: float = 120.0) -> Job:
        """Wait until the job is over and return it, whether it succeeded or not."""
        after = 0
        while True:
            for event in self.events(job_id, after=after, patience=patience):
                after = event.seq or after
                if on_event is not None:
                    on_event(event)
            job = self.job(job_id)
            if job.is_over:
                return job
            self._sleep(_POLL_SECONDS)

    def metrics(self, job_id: str) -> Iterator[dict[str, Any]]:
        """The points of the job's metric series, in order."""
        return self._items(f"/v1/jobs/{_quoted(job_id)}/metrics", lambda point: str(point["id"]))

    def logs(self, job_id: str) -> Iterator[dict[str, Any]]:
        """The job's log lines, in order."""
        return self._items(f"/v1/jobs/{_quoted(job_id)}/logs", lambda line: str(line["id"]))

    def checkpoints(self, job_id: str) -> list[dict[str, Any]]:
        """The checkpoints there are, with node, step, metrics and files."""
        return list(self._call("GET", f"/v1/jobs/{_quoted(job_id)}/checkpoints", repeat=True)["data"])

    # --- results --------------------------------------------------------------------------------------------------

    def report(self, job_id: str) -> dict[str, Any]:
        """Test scores for each seed with mean and spread, the majority baseline, and the cost of each stage."""
        return dict(self._call("GET", f"/v1/jobs/{_quoted(job_id)}/report", repeat=True))

    def model(self, job_id: str) -> list[ModelFile]:
        """The files of the result. Raises Conflict while there is none."""
        answer = self._call("GET", f"/v1/jobs/{_quoted(job_id)}/model", repeat=True)
        return [self._model(ModelFile, entry) for entry in answer["files"]]

    def download(self, job_id: str, folder: Path, on_bytes: Callable[[Part], None] | None = None) -> list[Path]:
        """Fetch every file of the result into `folder`, checked against its SHA-256; what is there already is kept.

        An interrupted download goes on where it stopped. Raises CorruptArtifact if the bytes do not match.
        """
        base = f"/v1/jobs/{_quoted(job_id)}/model/files"
        return [self._fetch(base, file, folder, on_bytes) for file in self.model(job_id)]

    def predict(self, job_id: str, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[Prediction]:
        """Labels and probabilities by the job's model; pairs: second texts, where the task has them."""
        body: dict[str, Any] = {"texts": list(texts)} | ({"pairs": list(pairs)} if pairs is not None else {})
        answer = self._call("POST", f"/v1/jobs/{_quoted(job_id)}/predict", json=body, repeat=True)
        return [self._model(Prediction, one) for one in answer["data"]]

    def info(self) -> dict[str, Any]:
        """Version and limits of the gateway."""
        return dict(self._call("GET", "/v1/info", repeat=True))

    # --- within ---------------------------------------------------------------------------------------------------

    def _verb(self, job_id: str, verb: str) -> Job:
        return self._model(Job, self._call("POST", f"/v1/jobs/{_quoted(job_id)}/{verb}"))

    def _call(self, method: str, path: str, *, repeat: bool = False, **kwargs: Any) -> Any:
        """One request; repeat: sending it twice does no harm."""
        for left in reversed(range(self._tries if repeat else 1)):
            try:
                response = self._http.request(method, path, **kwargs)
            except httpx.HTTPError as error:
                if left and isinstance(error, httpx.TransportError):
                    self._pause(self._tries - left)
                    continue
                raise _away(self.url, error) from error
            if response.status_code in (502, 503, 504) and left:
                self._pause(self._tries - left)
                continue
            if response.is_error:
                raise error_of(response)
            return _json(response)
        raise AssertionError("the last try returns or raises")

    def _pause(self, tries: int) -> None:
        # Spread out, so that many clients of a gateway that comes back do not all come at once.
        self._sleep(0.25 * 2**tries * random.uniform(0.5, 1.0))

    def _upload(self, path: str, form: Mapping[str, str], files: Sequence[tuple[str, Path]]) -> Any:
        with ExitStack() as stack:
            parts = []
            for field, file in files:
                handle = stack.enter_context(open(file, "rb"))
                parts.append((field, (file.name, handle, "application/octet-stream")))
            return self._call("POST", path, data=dict(form), files=parts, timeout=_patient())

    def _fetch(self, base: str, file: ModelFile, folder: Path, on_bytes: Callable[[Part], None] | None = None) -> Path:
        path = f"{base}/{quote(file.name)}"
        return fetch_file(self._http, path, file, folder, on_bytes=on_bytes, sleep=self._sleep)

    def _pages(
        self, cls: type[_Model], path: str, key: Callable[[_Model], str], filters: Mapping[str, str] | None = None
    ) -> Iterator[_Model]:
        return (self._model(cls, item) for item in self._items(path, lambda item: key(self._model(cls, item)), filters))

    def _items(
        self, path: str, key: Callable[[dict[str, Any]], str], filters: Mapping[str, str] | None = None
    ) -> Iterator[dict[str, Any]]:
        """All items of a list, page by page; key: what the next page is asked for with."""
        after: dict[str, str] = {}
        while True:
            page = self._call("GET", path, params={"limit": _PAGE, **(filters or {}), **after}, repeat=True)
            yield from page["data"]
            if not page["has_more"] or not page["data"]:
                return
            after = {"after": key(page["data"][-1])}

    def _model(self, cls: type[_Model], body: Any) -> _Model:
        try:
            return cls.model_validate(body)
        except ValidationError as error:
            raise TLMError(
                f"the gateway's answer is not understood; use the same release here and there: {error}"
            ) from error


def _body(spec: JobSpec) -> dict[str, Any]:
    return spec.model_dump(mode="json", exclude_defaults=True) | {"dataset": spec.dataset}


def _patient() -> httpx.Timeout:
    return httpx.Timeout(60.0, connect=5.0, read=_CHECKING_SECONDS)


def _away(url: str, error: httpx.HTTPError) -> Unavailable:
    return Unavailable(
        f"the gateway at {url} does not answer ({str(error) or type(error).__name__}); is it running? "
        "`tlm up` starts one on this machine"
    )


def _json(response: httpx.Response) -> Any:
    if not response.content:
        return {}
    try:
        return response.json()
    except ValueError as error:
        raise TLMError(f"{response.request.url} answered with something else than JSON; check the URL") from error


def _quoted(part: str) -> str:
    return quote(part, safe="")


def _is_loopback(url: str) -> bool:
    host = httpx.URL(url).host
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
