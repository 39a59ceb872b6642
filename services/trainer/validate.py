"""The `validate` stage, which the coordinator runs itself: an uploaded data set becomes a task."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path

from tlm_core.artifacts import ArtifactStore, ManifestRef
from tlm_core.jobs.plan import Node
from tlm_core.jobs.spec import JobRecord
from tlm_core.tasks.options import DatasetOptions


def validate_dataset(artifacts: ArtifactStore, scratch: Path, job: JobRecord, node: Node, artifact: str) -> ManifestRef:
    """Read and check the job's data set, cut missing splits, write the task. Raises InvalidDataset with every fault."""
    from tlm_core.tasks.validate import write_task

    source = artifacts.localize(job.resolved.dataset)
    work = scratch / "work" / f"{job.id}-{job.attempt}-{node.name}-{uuid.uuid4().hex[:8]}"
    work.mkdir(parents=True)
    try:
        write_task(source, work, DatasetOptions(**node.params["options"]))
        folder = f"{job.tenant}/artifacts/{artifact}/{job.id}-{job.attempt}-{uuid.uuid4().hex[:8]}"
        return artifacts.write(folder, work, artifact=artifact, stage=node.stage)
    finally:
        shutil.rmtree(work, ignore_errors=True)
