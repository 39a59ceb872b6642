"""Artifacts and checkpoints of a job, and their files as HTTP responses."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fastapi.responses import FileResponse, StreamingResponse
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope, Send

from services.common.jobstore import CheckpointRef, JobStore
from services.common.situation import Situation
from tlm_core.artifacts import FileEntry, ManifestRef
from tlm_core.artifacts.store import ArtifactStore
from tlm_core.errors import CorruptArtifact, NotFound, NotReady
from tlm_core.evaluation.summary import REPORT
from tlm_core.jobs.plan import plan_of
from tlm_core.jobs.spec import JobRecord
from tlm_core.jobs.states import RETRYABLE, TERMINAL
from tlm_core.serving import LINEAR_FILES
from tlm_core.stages import BASELINE
from tlm_core.wire import Checkpoint

_LINEAR = "linear/"  # the folder of the linear model in a download
_BLOCK = 1 << 20
_TAR_RECORD = 512


def situation_of(jobs: JobStore, job: JobRecord) -> Situation:
    """Return the plan of a job and the published artifact of each node.

    For a succeeded job, the artifacts come from the result in its record or in the storage. If this result is lost,
    return the artifacts that are published now. Return none of them if the artifact of a node is missing.
    """
    try:
        if artifacts := jobs.result_of(job):
            return Situation(job, plan_of(job), {name: entry.ref for name, entry in artifacts.items()})
    except (NotFound, CorruptArtifact):
        situation = Situation.read(jobs, job)
        return situation if len(situation.done) == len(situation.plan.nodes) else replace(situation, done={})
    return Situation.read(jobs, job)


def artifact_of(jobs: JobStore, job: JobRecord, stage: str) -> ManifestRef:
    """Return the artifact of the last node of `stage`.

    For a job of any kind, the stage `evaluate` stands for the final report, and `export` for the returned model. Raises
    NotReady if the artifact does not exist yet, and NotFound if it will never exist.
    """
    return _artifact(situation_of(jobs, job), stage)


def artifact_or_none(jobs: JobStore, job: JobRecord, stage: str) -> ManifestRef | None:
    """Return the artifact that `artifact_of` returns, or None if it does not exist."""
    try:
        return artifact_of(jobs, job, stage)
    except (NotReady, NotFound):
        return None


def report_of(jobs: JobStore, artifacts: ArtifactStore, job: JobRecord) -> dict[str, Any]:
    """Return the final report of a job. Raises the errors of `artifact_of`, and CorruptArtifact."""
    return artifacts.read_json(artifact_of(jobs, job, "evaluate"), REPORT)


def _artifact(situation: Situation, stage: str) -> ManifestRef:
    job, plan, done = situation.job, situation.plan, situation.done
    result_node = {"evaluate": plan.report, "export": plan.model}.get(stage)
    nodes = [
        node.name
        for node in plan.nodes
        if node.name == result_node or (result_node is None and node.stage.name == stage)
    ]
    if not nodes:
        if stage == "select":
            remedy = "To select passages, submit a job with a corpus, at a scale other than 'instant'."
            raise NotFound(f"Job {job.id} selected no passages, because it uses no corpus. {remedy}")
        stages = ", ".join(dict.fromkeys(node.stage.name for node in plan.nodes))
        raise NotFound(f"Job {job.id} has no stage '{stage}'. Its stages: {stages}.")
    if nodes[-1] in done:
        return done[nodes[-1]]
    if job.state in TERMINAL:
        remedy = "Retry the job." if job.state in RETRYABLE else "Clone the job."
        raise NotFound(f"Job {job.id} is {job.state} and has no result of stage '{stage}'. {remedy}", state=job.state)
    message = f"Job {job.id} is {job.state} and has not finished stage '{stage}' yet. Wait for this stage."
    raise NotReady(message, state=job.state)


@dataclass(frozen=True)
class ServedModel:
    """The model that a job serves now: the returned model, or the linear model until the returned model exists.

    note: why the model is not final. None for the returned model.
    """

    ref: ManifestRef
    note: str | None = None

    @property
    def final(self) -> bool:
        return self.note is None

    def files(self, artifacts: ArtifactStore) -> dict[str, FileEntry]:
        """Return the files of the model: name in a download → file."""
        files = artifacts.manifest(self.ref).files
        if self.final:
            return {file.name: file for file in files}
        return {_LINEAR + file.name: file for file in files if file.name in LINEAR_FILES}


def served_model(jobs: JobStore, job: JobRecord) -> ServedModel:
    """Return the model that a job serves now. Raises NotReady before a model exists, NotFound if none will exist."""
    situation = situation_of(jobs, job)
    linear = situation.done.get(BASELINE.name)
    if situation.plan.model in situation.done or linear is None:
        return ServedModel(_artifact(situation, "export"))
    if job.state in TERMINAL:
        return ServedModel(linear, f"The job is {job.state} and has no final model. This is its linear model.")
    return ServedModel(linear, f"The job is {job.state}. This is its linear model; the final model will replace it.")


def model_file_response(jobs: JobStore, artifacts: ArtifactStore, job: JobRecord, name: str) -> FileResponse:
    """Return a response with one file of the model that a job serves now.

    `linear/FILE` is a file of the linear model, even if the final model has no folder `linear`.
    """
    served = served_model(jobs, job)
    if file := served.files(artifacts).get(name):
        return file_response(artifacts, served.ref, file.name)
    situation, own = situation_of(jobs, job), name.removeprefix(_LINEAR)
    if own != name and own in LINEAR_FILES and (linear := situation.done.get(BASELINE.name)):
        return file_response(artifacts, linear, own)
    return file_response(artifacts, _artifact(situation, "export"), name)


def checkpoints_of(jobs: JobStore, job: JobRecord) -> list[CheckpointRef]:
    """Return the checkpoints of a job that still exist, in the order of its plan, ascending by step."""
    rows = jobs.moved_refs(job.tenant, job.id) if job.state in TERMINAL else []
    refs = [CheckpointRef.model_validate_json(row["checkpoint"]) for row in rows if "checkpoint" in row]
    if job.checkpoints:
        refs += map(CheckpointRef.model_validate, job.checkpoints)
    else:
        ids = situation_of(jobs, job).artifact_ids()
        refs += [ref for artifact in ids for ref in jobs.checkpoints(job.tenant, artifact)]
    order = {node.name: index for index, node in enumerate(plan_of(job).nodes)}
    return sorted(refs, key=lambda ref: (order.get(ref.node, len(order)), ref.step))


def checkpoint_at(jobs: JobStore, job: JobRecord, node: str, step: int) -> CheckpointRef:
    """Return the checkpoint of a node at a step. Raises NotFound."""
    for checkpoint in checkpoints_of(jobs, job):
        if (checkpoint.node, checkpoint.step) == (node, step):
            return checkpoint
    raise NotFound(f"Job {job.id} has no checkpoint of '{node}' at step {step}. List its checkpoints.")


def checkpoint_views(artifacts: ArtifactStore, checkpoints: Sequence[CheckpointRef]) -> list[Checkpoint]:
    """Return the checkpoints with their files. Omit checkpoints that a newer checkpoint has just replaced."""
    views = []
    for checkpoint in checkpoints:
        try:
            files = artifacts.manifest(checkpoint.ref).files
        except NotFound:
            continue
        fields = checkpoint.model_dump(include={"node", "step", "job", "attempt", "metrics"})
        views.append(Checkpoint(**fields, files=files))
    return views


class _RangedFile(FileResponse):
    """A file response that raises HTTPException for an invalid Range header, so the client gets an RFC 9457 problem."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        value = Headers(scope=scope).get("range", "")

        async def checked(message: Message) -> None:
            status = message.get("status")
            if status == 400:
                raise HTTPException(400, f"Invalid Range header '{value[:100]}'. Expected bytes=FIRST-LAST.")
            if status == 416:
                size = dict(message["headers"])[b"content-range"].decode()
                problem = f"Range '{value[:100]}' is outside the file of {size.removeprefix('bytes */')} bytes."
                raise HTTPException(416, f"{problem} Request a range inside the file.", {"Content-Range": size})
            await send(message)

        await super().__call__(scope, receive, checked)


def file_response(artifacts: ArtifactStore, ref: ManifestRef, name: str) -> FileResponse:
    """Return a response with one file of an artifact. Raises NotFound.

    The response supports Range and If-Range. Its headers have an ETag and the SHA-256 of the file.
    """
    entry = artifacts.manifest(ref).file(name)
    path = artifacts.localize(ref) / entry.name
    headers = {"ETag": f'"{entry.sha256}"', "X-Checksum-SHA256": entry.sha256, "Cache-Control": "private, no-transform"}
    return _RangedFile(path, media_type="application/octet-stream", filename=path.name, headers=headers)


def archive_response(
    artifacts: ArtifactStore, ref: ManifestRef, name: str, files: Mapping[str, FileEntry] | None = None
) -> StreamingResponse:
    """Return a tar stream of files of an artifact, below the folder `name`. Equal artifacts give equal bytes.

    files: name in the archive → file; by default, all files. Raises CorruptArtifact, NotFound.
    """
    files = files if files is not None else {file.name: file for file in artifacts.manifest(ref).files}
    artifacts.localize(ref)  # Report missing files before the response begins.
    size = sum(_TAR_RECORD + _padded(file.size) for file in files.values()) + 2 * _TAR_RECORD
    headers = {
        "Content-Length": str(size),
        "Content-Disposition": f'attachment; filename="{name}.tar"',
        "ETag": f'"{ref.digest}.tar"',
        "Cache-Control": "private, no-transform",
    }
    return StreamingResponse(_tar(artifacts, ref, files, name), media_type="application/x-tar", headers=headers)


def _tar(artifacts: ArtifactStore, ref: ManifestRef, files: Mapping[str, FileEntry], name: str) -> Iterator[bytes]:
    for member, file in files.items():
        entry = tarfile.TarInfo(f"{name}/{member}")
        entry.size, entry.mode = file.size, 0o644
        yield entry.tobuf(tarfile.USTAR_FORMAT)
        with artifacts.open(ref, file.name) as handle:
            while block := handle.read(_BLOCK):
                yield block
        yield b"\0" * (_padded(file.size) - file.size)
    yield b"\0" * (2 * _TAR_RECORD)


def _padded(size: int) -> int:
    return -(-size // _TAR_RECORD) * _TAR_RECORD
