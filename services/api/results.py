"""What a job has left in storage: its artifacts, checkpoints, selection."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastapi.responses import FileResponse
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope, Send

from services.common.jobstore import CheckpointRef, JobStore
from services.common.situation import Situation
from tlm_core.artifacts import ArtifactStore, ManifestRef
from tlm_core.errors import Conflict, CorruptArtifact, NotFound
from tlm_core.jobs.plan import Plan, plan_of
from tlm_core.jobs.spec import JobRecord
from tlm_core.jobs.states import TERMINAL
from tlm_core.parquet import open_parquet
from tlm_core.wire import Checkpoint, Provenance, SelectedPassage, Selection

_ASKERS = 20
_ASKER_CHARS = 300


def refs_of(jobs: JobStore, job: JobRecord, plan: Plan | None = None) -> dict[str, ManifestRef]:
    """Node name → what it left, for the nodes that are done. A job that succeeded tells it itself."""
    if job.result is not None and "artifacts" in job.result:
        return {name: ManifestRef(**entry["ref"]) for name, entry in job.result["artifacts"].items()}
    return Situation.read(jobs, job, plan).done


def artifact_of(jobs: JobStore, job: JobRecord, stage: str) -> ManifestRef:
    """What the job's (last) node of `stage` left. Raises Conflict until there is one, NotFound if none will be.

    `evaluate` and `export` mean the report and the model of the job, whichever stage makes them in its kind.
    """
    plan = plan_of(job)
    named = {"evaluate": plan.report, "export": plan.model}.get(stage)
    nodes = [node.name for node in plan.nodes if node.name == named or (named is None and node.stage.name == stage)]
    if not nodes:
        raise NotFound(f"{job.id} has no stage '{stage}'; it was submitted without")
    done = refs_of(jobs, job, plan)
    if nodes[-1] not in done:
        if job.state in TERMINAL:
            raise NotFound(f"{job.id} is {job.state} and has not made '{stage}'; retry it", state=job.state)
        raise Conflict(f"{job.id} is {job.state} and has not finished '{stage}' yet", state=job.state)
    return done[nodes[-1]]


class _RangedFile(FileResponse):
    """A file, whose answer to a Range header that cannot be served is a problem like any other."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def checked(message: Message) -> None:
            status = message.get("status")
            if status == 400:
                raise HTTPException(400, "the Range header is none of the form bytes=FIRST-LAST; send it so, or none")
            if status == 416:
                size = dict(message["headers"])[b"content-range"].decode()
                detail = f"the file has no such range ({size.removeprefix('bytes */')} bytes in all); ask within it"
                raise HTTPException(416, detail, {"Content-Range": size})
            await send(message)

        await super().__call__(scope, receive, checked)


def open_file(artifacts: ArtifactStore, ref: ManifestRef, name: str) -> FileResponse:
    """The answer that sends one file of an artifact: with Range, If-Range, ETag and its SHA-256. Raises NotFound."""
    entry = artifacts.manifest(ref).file(name)
    path = artifacts.localize(ref) / entry.name
    headers = {"ETag": f'"{entry.sha256}"', "X-Checksum-SHA256": entry.sha256, "Cache-Control": "private, no-transform"}
    return _RangedFile(path, media_type="application/octet-stream", filename=path.name, headers=headers)


def json_of(artifacts: ArtifactStore, ref: ManifestRef, name: str) -> dict[str, Any]:
    """A JSON file of an artifact."""
    with artifacts.open(ref, name) as handle:
        content: dict[str, Any] = json.load(handle)
    return content


def checkpoints_of(jobs: JobStore, job: JobRecord) -> list[CheckpointRef]:
    """The checkpoints that exist for the job's stages, in the order of its plan, the furthest last."""
    plan = plan_of(job)
    situation = Situation(job, plan, refs_of(jobs, job, plan))
    return [ref for artifact in situation.artifact_ids() for ref in jobs.checkpoints(job.tenant, artifact)]


def checkpoint_views(artifacts: ArtifactStore, checkpoints: list[CheckpointRef]) -> list[Checkpoint]:
    """Checkpoints with their files; one that was replaced while we looked is left out."""
    views = []
    for one in checkpoints:
        try:
            files = artifacts.manifest(one.ref).files
        except NotFound:
            continue
        views.append(
            Checkpoint(node=one.node, step=one.step, job=one.job, attempt=one.attempt, metrics=one.metrics, files=files)
        )
    return views


def selection_page(
    artifacts: ArtifactStore,
    ref: ManifestRef,
    *,
    after: int,
    limit: int,
    words: Sequence[str] = (),
    train_row: int | None = None,
    task: ManifestRef | None = None,
) -> Selection:
    """`limit` passages of a selection from position `after` on, each with the train rows that asked for it.

    words: only passages that hold them all, in any case. train_row: only what that row asked for. task: the job's task,
    from which the texts of the rows are shown.
    """
    import pyarrow.compute as pc

    folder = artifacts.localize(ref)
    facts = json.loads((folder / "selection.json").read_text(encoding="utf-8"))
    only = None if train_row is None else _asked_for(folder, train_row)
    rows: list[dict[str, Any]] = []
    total = 0
    with open_parquet(folder / "passages.parquet") as file:
        for batch in file.iter_batches(batch_size=8_192):
            for word in words:
                batch = batch.filter(pc.match_substring(batch["text"], word, ignore_case=True))
            if only is not None:
                batch = batch.filter(pc.is_in(batch["id"], only))
            begin = max(after - total, 0)
            if begin < batch.num_rows and len(rows) < limit:
                rows.extend(batch.slice(begin, limit - len(rows)).to_pylist())
            total += batch.num_rows
    asked = _askers(folder, [row["id"] for row in rows])
    shown = _texts(artifacts, task, {entry["train_row"] for found in asked.values() for entry in found[:_ASKERS]})
    data = tuple(
        SelectedPassage(
            **row,
            provenance=tuple(
                Provenance(**entry, **shown.get(entry["train_row"], {})) for entry in asked[row["id"]][:_ASKERS]
            ),
            provenance_total=len(asked[row["id"]]),
        )
        for row in rows
    )
    return Selection(facts=facts, data=data, total=total, has_more=after + len(rows) < total)


def _asked_for(folder: Path, train_row: int) -> Any:
    import pyarrow.parquet as pq

    columns = ["passage_id"]
    return pq.read_table(folder / "provenance.parquet", columns=columns, filters=[("train_row", "==", train_row)])[0]


def _askers(folder: Path, passages: list[str]) -> dict[str, list[dict[str, Any]]]:
    """Who asked for each of the passages, best rank first."""
    import pyarrow.parquet as pq

    asked: dict[str, list[dict[str, Any]]] = {name: [] for name in passages}
    if passages:
        table = pq.read_table(folder / "provenance.parquet", filters=[("passage_id", "in", passages)])
        for row in table.to_pylist():
            asked[row.pop("passage_id")].append(row)
    return asked


def _texts(artifacts: ArtifactStore, task: ManifestRef | None, rows: set[int]) -> dict[int, dict[str, str]]:
    """Text and label (or regression target) of train rows, as far as they are at hand."""
    import pyarrow.parquet as pq

    if task is None or not rows:
        return {}
    try:
        folder = artifacts.localize(task)
        labels: list[str] = json.loads((folder / "task.json").read_text(encoding="utf-8"))["labels"]
        found = pq.read_table(folder / "train.parquet", filters=[("row", "in", sorted(rows))]).to_pylist()
    except (OSError, NotFound, CorruptArtifact):  # an explanation without the text is better than none
        return {}

    def label(value: int | float) -> str:
        return f"{value:g}" if isinstance(value, float) else labels[value]

    return {one["row"]: {"text": one["text"][:_ASKER_CHARS], "label": label(one["label"])} for one in found}
