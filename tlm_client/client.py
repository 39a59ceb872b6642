"""The API client. `make client` generates this file from async_client.py. Do not edit it."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from tlm_client import http
from tlm_client.connection import PAGE, UPLOAD_TIMEOUT, Connection
from tlm_client.transfer import RESUMABLE_BYTES, OnBytes, Stream, claim_folder
from tlm_core import wire
from tlm_core.artifacts import FileEntry
from tlm_core.corpus.states import NearDuplicatesChoice
from tlm_core.errors import InvalidRequest
from tlm_core.jobs.spec import JobSpec
from tlm_core.names import ALIAS, is_job_id

_POLL_SECONDS = 0.5


class TLMClient(Connection):
    """Client of the API of one gateway. Close the client after use, or use it in a `with` block.

    TLMClient is thread-safe. AsyncTLMClient has the same methods for asyncio: await their results, or iterate over
    their results with `async for`. AsyncTLMClient blocks the event loop while it reads or writes files.

    timeout: seconds without data after which a request fails. tries: maximum number of tries of an idempotent request
    while the gateway or one of its components does not answer. The client tries other requests once.

    Each method raises errors of tlm_core.errors, such as Unavailable if the gateway does not answer. The constructor
    raises InvalidRequest for an invalid URL or token.
    """

    # --- datasets ----------------------------------------------------------------------------------------------------

    def add_dataset(
        self,
        name: str,
        files: Mapping[str, Path],
        options: Mapping[str, object] | None = None,
        *,
        in_parts_from: int = RESUMABLE_BYTES,
    ) -> wire.DatasetCreated:
        """Upload a dataset and return it with its validation report.

        files: split → path. The splits are `train`, and optionally `validation` and `test`. A dataset of one file has
        the key `file` instead. The optional key `selection` names a file with the columns text and rank, for the
        selector `given`. options: fields of DatasetOptions. in_parts_from: if all files together have at least this
        number of bytes, the client uploads them in parts. Then a broken connection costs only one part.

        Raises InvalidDataset with all data errors. Each data error states its split, row and column.
        """
        body = {"name": name, "options": dict(options or {})}
        return self._upload(wire.DatasetCreated, "/v1/datasets", body, list(files.items()), in_parts_from)

    def add_hub_dataset(
        self, name: str, hub: str, options: Mapping[str, object] | None = None, *, selection: str | None = None
    ) -> wire.DatasetCreated:
        """Add a dataset of the Hugging Face hub and return it with its validation report.

        hub: `OWNER/NAME[@REVISION][:CONFIG]`. options: fields of DatasetOptions. selection: name of a file in the
        hub dataset, with the columns text and rank, for the selector named `given`.
        """
        body = {"name": name, "hub": hub.removeprefix("hub:"), "options": dict(options or {}), "selection": selection}
        return self._post(wire.DatasetCreated, "/v1/datasets/hub", json=body, timeout=UPLOAD_TIMEOUT)

    def datasets(self) -> Iterator[wire.Dataset]:
        """Iterate over all versions of all datasets, newest first."""
        return self._pages(wire.Page[wire.Dataset], lambda dataset: dataset.id, "/v1/datasets")

    def dataset(self, id_or_name: str) -> wire.Dataset:
        """Return a dataset by id, by name (newest version), by NAME@vNUMBER or by NAME@DIGEST."""
        return self._get(wire.Dataset, "/v1/datasets/{}", id_or_name)

    def dataset_report(self, id_or_name: str) -> wire.JsonObject:
        """Return the validation report of a dataset, such as labels, duplicates, warnings and inferred options."""
        return self._get(wire.JsonObject, "/v1/datasets/{}/report", id_or_name)

    def dataset_preview(self, id_or_name: str) -> list[wire.JsonObject]:
        """Return the first five train rows of a dataset, as the gateway reads them. Long texts are truncated."""
        return self._list(wire.Items[wire.JsonObject], "/v1/datasets/{}/preview", id_or_name)

    def download_dataset(self, id_or_name: str, folder: Path) -> list[Path]:
        """Download the files of a dataset, verified by SHA-256. Return their paths, such as FOLDER/train.csv."""
        files = self._list(wire.Items[FileEntry], "/v1/datasets/{}/files", id_or_name)
        base = http.path("/v1/datasets/{}/files", id_or_name)
        return [self._download(base, file, folder, None) for file in files]

    def delete_dataset(self, dataset_id: str, *, with_jobs: bool = False) -> None:
        """Delete one version of a dataset. Raises Conflict if an unfinished job needs this version.

        with_jobs: also delete the jobs on this version, with their models.
        """
        self._delete("/v1/datasets/{}", dataset_id, with_jobs=with_jobs)

    # --- corpora -----------------------------------------------------------------------------------------------------

    def add_corpus(
        self,
        name: str,
        files: Sequence[Path],
        language: str = "en",
        *,
        near_duplicates: NearDuplicatesChoice = "drop",
        in_parts_from: int = RESUMABLE_BYTES,
    ) -> wire.CorpusLoad:
        """Upload files as the next version of a corpus, and return the load. `wait_corpus` waits until jobs can use it.

        near_duplicates: `drop` or `keep` passages that nearly equal an earlier passage. in_parts_from: see
        `add_dataset`.
        """
        body = {"name": name, "language": language, "near_duplicates": near_duplicates}
        return self._upload(wire.CorpusLoad, "/v1/corpora", body, [(None, file) for file in files], in_parts_from)

    def fetch_corpus(
        self, name: str, sources: Sequence[str], language: str = "en", *, near_duplicates: NearDuplicatesChoice = "drop"
    ) -> wire.CorpusLoad:
        """Let the service fetch `s3://…` or `hub:…` addresses as the next version of a corpus, and return the load.

        Raises InvalidRequest for an address that the operator does not allow.
        """
        body = {"name": name, "language": language, "near_duplicates": near_duplicates, "sources": list(sources)}
        return self._post(wire.CorpusLoad, "/v1/corpora/from-sources", json=body)

    def wait_corpus(
        self,
        name: str,
        load_id: str,
        on_progress: Callable[[wire.CorpusLoad], None] | None = None,
        *,
        patience: float = http.PATIENCE,
    ) -> wire.CorpusLoad:
        """Wait until a load is ready, and return it. on_progress: receives each polled load. patience: see `events`.

        Raises the error of a failed load, and Conflict for a cancelled load.
        """
        path = "/v1/corpora/{}/loads/{}"
        while True:
            load = self._persist(patience, self._get, wire.CorpusLoad, path, name, load_id)
            if on_progress is not None:
                on_progress(load)
            if http.is_ready(load):
                return load
            self._sleep(_POLL_SECONDS)

    def cancel_load(self, name: str, load_id: str) -> wire.CorpusLoad:
        """Cancel a load. The load is `cancelling` until its files and index are deleted. Earlier versions remain."""
        return self._post(wire.CorpusLoad, "/v1/corpora/{}/loads/{}/cancel", name, load_id)

    def corpora(self) -> Iterator[wire.Corpus]:
        """Iterate over all corpora, sorted by name."""
        return self._pages(wire.Page[wire.Corpus], lambda corpus: corpus.name, "/v1/corpora")

    def corpus(self, name: str) -> wire.Corpus:
        """Return a corpus with its versions and latest loads."""
        return self._get(wire.Corpus, "/v1/corpora/{}", name)

    def delete_corpus(self, name: str, version: str | None = None) -> None:
        """Delete a corpus, or one version of it. Raises Conflict if an unfinished job needs the data."""
        if version is None:
            self._delete("/v1/corpora/{}", name)
        else:
            self._delete("/v1/corpora/{}/versions/{}", name, version)

    def refused_passages(self, name: str, version: str) -> list[wire.RefusedPassage]:
        """Return the passages of a version that the index rejected, with the reasons."""
        return self._list(wire.Items[wire.RefusedPassage], "/v1/corpora/{}/versions/{}/refused", name, version)

    def search(self, name: str, query: str, k: int = 10) -> list[wire.Hit]:
        """Return the best k passages of a corpus for a query, best first."""
        body = {"query": query, "k": k}
        result = self._post(wire.SearchResult, "/v1/corpora/{}/search", name, repeat=True, json=body)
        return list(result.hits)

    # --- jobs --------------------------------------------------------------------------------------------------------

    def submit(self, spec: JobSpec, *, key: str | None = None) -> wire.Job:
        """Submit a job. The gateway has stored the job when this method returns.

        key: the idempotency key, random by default. A repeated request with the same key creates no second job.
        """
        return self._submit("/v1/jobs", key=key, json=http.job_body(spec))

    def _submit(self, path: str, *parts: str, key: str | None, json: object = None) -> wire.Job:
        """Post a request that creates a job. Because of the idempotency key, a repetition creates no second job."""
        headers = {"Idempotency-Key": str(uuid.uuid4()) if key is None else key}
        return self._post(wire.Job, path, *parts, repeat=True, headers=headers, json=json)

    def dry_run(self, spec: JobSpec) -> wire.DryRun:
        """Validate a job and estimate its cost without submitting it."""
        return self._post(wire.DryRun, "/v1/jobs", repeat=True, json=http.job_body(spec), params={"dry_run": True})

    def estimate(self, spec: JobSpec) -> wire.Estimate:
        """Estimate time, FLOPs, memory, disk, GPU hours and passages of a job. Unknown values are None."""
        return self._post(wire.Estimate, "/v1/jobs/estimate", repeat=True, json=http.job_body(spec))

    def retry(self, job_id: str, *, key: str | None = None) -> wire.Job:
        """Submit a failed or cancelled job again. The new job reuses the stages that are done."""
        return self._submit("/v1/jobs/{}/retry", job_id, key=key)

    def clone(self, job_id: str, changes: Mapping[str, object] | None = None, *, key: str | None = None) -> wire.Job:
        """Submit a copy of a job. changes: fields of JobSpec. `overrides` and `options` need only the changed keys."""
        return self._submit("/v1/jobs/{}/clone", job_id, key=key, json=dict(changes or {}))

    def jobs(
        self,
        state: str | None = None,
        *,
        kind: str | None = None,
        dataset: str | None = None,
        labels: Mapping[str, str] | None = None,
        search: str | None = None,
    ) -> Iterator[wire.JobSummary]:
        """Iterate over the jobs that match all filters, newest first.

        dataset: id, NAME or NAME@VERSION. labels: entries of metadata. search: part of the name, or start of the id.
        """
        label = [f"{name}={value}" for name, value in (labels or {}).items()]
        filters = {"state": state, "kind": kind, "dataset": dataset, "label": label, "q": search}
        return self._pages(wire.Page[wire.JobSummary], lambda job: job.id, "/v1/jobs", **filters)

    def job_id(self, reference: str) -> str:
        """Return the id of a job. reference: `@latest` (the newest job), an alias, a name, or a unique start of an id.

        A name means the newest job with this name, even if an id starts with the name. A full id needs no request.
        Raises NotFound, or InvalidRequest if `reference` is empty, too short, or the start of several ids.
        """
        if is_job_id(reference):
            return reference
        if not reference.strip():  # an empty text is the start of every id
            raise InvalidRequest("The job reference is empty. Give an id, a name, an alias or @latest.")
        latest = reference == "@latest"
        if re.fullmatch(ALIAS, reference):
            return (self.finished_model(reference)).job
        ids = []
        for job in self.jobs(search=None if latest else reference):
            if latest or job.name == reference:
                return job.id
            if job.id.startswith((reference, f"job_{reference}")):
                ids.append(job.id)
        known = [] if ids else (self._get(wire.Page[wire.JobSummary], "/v1/jobs", limit=PAGE)).data
        return http.only_id(ids, reference, (job.name for job in known if job.name))

    def job(self, job_id: str) -> wire.Job:
        """Return a job with its state, progress, error, resolved inputs and stages."""
        return self._get(wire.Job, "/v1/jobs/{}", job_id)

    def delete_job(self, job_id: str) -> None:
        """Delete a job that is over, with the model and checkpoints that no other job uses."""
        self._delete("/v1/jobs/{}", job_id)

    def cancel(self, job_id: str) -> wire.Job:
        """Cancel a job. The job is `cancelling` until its processes end. A repeated request changes nothing."""
        return self._post(wire.Job, "/v1/jobs/{}/cancel", job_id, repeat=True)

    def pause(self, job_id: str) -> wire.Job:
        """Pause a job. The job is `pausing` until its worker has written a checkpoint."""
        return self._post(wire.Job, "/v1/jobs/{}/pause", job_id, repeat=True)

    def resume(self, job_id: str) -> wire.Job:
        """Queue a paused job again. The job resumes from its last checkpoint."""
        return self._post(wire.Job, "/v1/jobs/{}/resume", job_id, repeat=True)

    def compare(self, job_ids: Sequence[str], *, points: int = 200) -> wire.Comparison:
        """Compare 2 to 10 jobs: settings, scores, costs and curves. points: maximum number of points in a curve."""
        return self._get(wire.Comparison, "/v1/jobs/compare", ids=list(job_ids), points=points)

    def events(self, job_id: str, *, after: int = 0, patience: float = http.PATIENCE) -> Iterator[wire.JobEvent]:
        """Yield the events of a job until the job is over. Call `job` afterwards for the final state of the job.

        after: skip the events up to this `seq`. Events of type `progress` have no `seq`. Reconnects after a broken
        connection, and raises Unavailable after `patience` seconds without data.
        """
        stream = Stream(str(after), patience, self._clock)
        for event, body in self._follow(http.path("/v1/jobs/{}/events", job_id), stream):
            yield wire.JobEvent(**body) if "seq" in body else wire.JobEvent(type=event, data=body)

    def past_events(self, job_id: str) -> Iterator[wire.JobEvent]:
        """Iterate over the events so far, in order, without waiting for new ones."""
        return self._pages(wire.Page[wire.JobEvent], lambda event: str(event.seq), "/v1/jobs/{}/events", job_id)

    def wait(
        self, job_id: str, on_event: Callable[[wire.JobEvent], None] | None = None, *, patience: float = http.PATIENCE
    ) -> wire.Job:
        """Wait until a job is over, and return the job. A failed job raises no error. patience: see `events`."""
        after = 0
        while True:
            for event in self.events(job_id, after=after, patience=patience):
                after = event.seq or after
                if on_event is not None:
                    on_event(event)
            job = self._persist(patience, self.job, job_id)
            if job.is_over:
                return job
            self._sleep(_POLL_SECONDS)

    def metrics(self, job_id: str) -> Iterator[wire.JsonObject]:
        """Iterate over the metric points of a job, in order. A point has the fields of wire.MetricPoint."""
        return self._pages(wire.Page[wire.JsonObject], lambda point: str(point["id"]), "/v1/jobs/{}/metrics", job_id)

    def series(
        self, job_id: str, *, points: int = 300, node: str | None = None, names: Sequence[str] = ()
    ) -> list[wire.Series]:
        """Return a series for each node and metric of a job. points: maximum length of a series, from 4 to 5,000.

        The gateway reduces a longer series to its first value, its last value, and the minimum and maximum of equal
        parts between them. node, names: return only the series of this node and of these metrics.
        """
        path, filters = "/v1/jobs/{}/metrics/series", {"node": node, "name": list(names)}
        return self._list(wire.Items[wire.Series], path, job_id, points=points, **filters)

    def logs(self, job_id: str) -> Iterator[wire.LogLine]:
        """Iterate over the log lines of a job, in order."""
        return self._pages(wire.Page[wire.LogLine], lambda line: line.id, "/v1/jobs/{}/logs", job_id)

    def last_logs(self, job_id: str, count: int) -> list[wire.LogLine]:
        """Return the last `count` log lines, in order."""
        return self._list(wire.Items[wire.LogLine], "/v1/jobs/{}/logs", job_id, tail=count)

    def follow_logs(self, job_id: str, *, after: str = "0", patience: float = http.PATIENCE) -> Iterator[wire.LogLine]:
        """Yield the log lines after the line with id `after`, until the job is over. Reconnects like `events`."""
        stream = Stream(after, patience, self._clock)
        for _, line in self._follow(http.path("/v1/jobs/{}/logs", job_id), stream):
            yield wire.LogLine(**line)

    # --- results -----------------------------------------------------------------------------------------------------

    def checkpoints(self, job_id: str) -> list[wire.Checkpoint]:
        """Return the checkpoints that exist, with node, step, metrics and files."""
        return self._list(wire.Items[wire.Checkpoint], "/v1/jobs/{}/checkpoints", job_id)

    def download_checkpoint(
        self, job_id: str, checkpoint: wire.Checkpoint, folder: Path, on_bytes: OnBytes | None = None
    ) -> list[Path]:
        """Download the files of a checkpoint and return their paths. Verifies and resumes like `download`."""
        base = http.path("/v1/jobs/{}/checkpoints/{}/{}", job_id, checkpoint.node, str(checkpoint.step))
        return [self._download(base, file, folder, on_bytes) for file in checkpoint.files]

    def download_checkpoint_archive(self, job_id: str, checkpoint: wire.Checkpoint, target: Path) -> Path:
        """Download a checkpoint as one tar file, and return `target`. An interrupted download cannot resume."""
        path = http.path("/v1/jobs/{}/checkpoints/{}/{}", job_id, checkpoint.node, str(checkpoint.step))
        return self._download_archive(path, target)

    def report(self, job_id: str) -> wire.JsonObject:
        """Return the report of a job, such as test scores with mean and spread, and the cost of each stage."""
        return self._get(wire.JsonObject, "/v1/jobs/{}/report", job_id)

    def model(self, job_id: str) -> wire.Model:
        """Return the files of the final model, or those of the linear model until the final model exists.

        Raises NotReady if the job has no model yet, and NotFound if the job will never have a model.
        """
        return self._get(wire.Model, "/v1/jobs/{}/model", job_id)

    def download(self, job_id: str, folder: Path, on_bytes: OnBytes | None = None) -> list[Path]:
        """Download the files of the model, verified by SHA-256, and return their paths.

        Resumes an interrupted download. Waits while another process downloads into the folder. Until the final model
        exists, downloads the linear model to `linear/`. Raises InvalidRequest if the folder holds files of another
        model or cannot be written, and CorruptArtifact for a file with a wrong SHA-256.
        """
        base, files = http.path("/v1/jobs/{}/model/files", job_id), (self.model(job_id)).files
        claim_folder(folder, job_id, files)
        return [self._download(base, file, folder, on_bytes) for file in files]

    def download_archive(self, job_id: str, target: Path) -> Path:
        """Download the model as one tar file, and return `target`. An interrupted download cannot resume."""
        return self._download_archive(http.path("/v1/jobs/{}/model/archive", job_id), target)

    def selection(
        self, job_id: str, *, words: str = "", train_row: int | None = None, after: int = 0, limit: int = 20
    ) -> wire.Selection:
        """Return a page of the passages that a job selected, with their provenance, best rank first.

        words: only passages that contain all these words. train_row: only passages that this row (from 1) retrieved.
        after: number of passages to skip. limit: maximum number of passages.
        """
        params = {"q": words, "train_row": train_row, "after": after, "limit": limit}
        return self._get(wire.Selection, "/v1/jobs/{}/selection", job_id, **params)

    def suspects(self, job_id: str, *, limit: int = 50) -> wire.SuspectLabels:
        """Return the rows of train and validation whose labels are probably wrong, most suspect first."""
        return self._get(wire.SuspectLabels, "/v1/jobs/{}/suspects", job_id, limit=limit)

    def predict(
        self,
        model: str,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        *,
        min_confidence: float | None = None,
    ) -> wire.Predictions:
        """Classify texts with a model. `predict_many` accepts any number of texts.

        Until the final model exists, the linear model predicts, and `model.final` of the answer is false. model: id of
        a job, or an alias. pairs: the second texts, if the task has text pairs. min_confidence: texts whose highest
        probability is lower get no label.
        """
        second = None if pairs is None else list(pairs)
        body = http.present({"texts": list(texts), "pairs": second, "min_confidence": min_confidence})
        return self._post(wire.Predictions, "/v1/models/{}/predict", model, repeat=True, json=body)

    def predict_many(
        self,
        model: str,
        texts: Iterable[str],
        pairs: Iterable[str] | None = None,
        *,
        min_confidence: float | None = None,
        patience: float = http.PATIENCE,
    ) -> Iterator[wire.Prediction]:
        """Yield the prediction of each text, in order. Each request respects the limits of the gateway. See `predict`.

        Raises Unavailable after at least `patience` seconds without an answer.
        """
        info = self.info()
        for batch in http.batches(texts, pairs, info.max_predict_texts, info.max_json_bytes):
            columns = zip(*batch, strict=True)
            answer = self._persist(patience, self.predict, model, *columns, min_confidence=min_confidence)
            for prediction in answer.data:
                yield prediction

    def models(self) -> Iterator[wire.FinishedModel]:
        """Iterate over the models of succeeded jobs with their aliases, newest first."""
        return self._pages(wire.Page[wire.FinishedModel], lambda model: model.job, "/v1/models")

    def finished_model(self, model: str) -> wire.FinishedModel:
        """Return the model of a succeeded job. model: id of the job, or an alias."""
        return self._get(wire.FinishedModel, "/v1/models/{}", model)

    def set_alias(self, alias: str, job_id: str) -> wire.FinishedModel:
        """Point an alias such as `reviews@production` to the model of a succeeded job."""
        return self._call(wire.FinishedModel, "PUT", http.path("/v1/models/{}", alias), json={"job": job_id})

    def delete_alias(self, alias: str) -> None:
        """Delete an alias, but not its model."""
        self._delete("/v1/models/{}", alias)

    # --- webhooks and service ----------------------------------------------------------------------------------------

    def add_webhook(self, url: str, events: Sequence[str] = ()) -> wire.WebhookCreated:
        """Add a webhook for `events` (default: the ends of jobs). Only this answer has the secret for signatures."""
        body = {"url": url} | ({"events": list(events)} if events else {})
        return self._post(wire.WebhookCreated, "/v1/webhooks", json=body)

    def webhooks(self) -> list[wire.Webhook]:
        """Return all webhooks, oldest first."""
        return self._list(wire.Items[wire.Webhook], "/v1/webhooks")

    def webhook(self, webhook_id: str) -> wire.Webhook:
        """Return a webhook. If the gateway stopped sending events, `disabled` contains the reason."""
        return self._get(wire.Webhook, "/v1/webhooks/{}", webhook_id)

    def webhook_attempts(self, webhook_id: str) -> list[wire.WebhookAttempt]:
        """Return the latest delivery attempts, newest first."""
        return self._list(wire.Items[wire.WebhookAttempt], "/v1/webhooks/{}/attempts", webhook_id)

    def delete_webhook(self, webhook_id: str) -> None:
        """Delete a webhook."""
        self._delete("/v1/webhooks/{}", webhook_id)

    def info(self) -> wire.Info:
        """Return version and limits of the gateway."""
        return self._get(wire.Info, "/v1/info")

    def ready(self) -> dict[str, str]:
        """Return the status of each component and background task, such as `{"redis": "ok", "coordinator": "ok"}`.

        Raises Unavailable if a component or a task fails. A missing coordinator raises no error.
        """
        return http.parse(dict[str, str], self._send("GET", "/readyz"))
