"""Runs the stages of the coordinator: they need neither workers nor torch."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

from services.common.situation import folder_prefix
from services.trainer.scratch import work_folder
from services.trainer.worker import NullReporter
from tlm_core.artifacts import ArtifactStore, ManifestRef
from tlm_core.jobs.plan import Node
from tlm_core.jobs.spec import JobRecord
from tlm_core.training.stage import StageContext


class _NoCheckpoints:
    """These stages start over instead of resuming."""

    def latest(self) -> None: ...

    def newest(self) -> None: ...

    def save(self, write: Callable[[Path], None], *, step: int, metrics: Mapping[str, float | None]) -> None: ...


def run_local(
    artifacts: ArtifactStore,
    scratch: Path,
    job: JobRecord,
    node: Node,
    artifact: str,
    inputs: Mapping[str, ManifestRef],
) -> ManifestRef:
    """Run a node of Place.COORDINATOR and write its artifact. Raises what the stage raises.

    inputs: the artifacts of the node's inputs. A fixed input `dataset` is one of the job's datasets.
    """
    datasets = {dataset.ref.digest: dataset.ref for dataset in job.resolved.datasets}
    refs = {**inputs, **{name: datasets[digest] for name, digest in node.fixed.items()}}
    with work_folder(scratch, f"{job.id}-{job.attempt}-{node.name}") as work:
        out = work / "out"
        out.mkdir()
        folders = {name: artifacts.localize(ref) for name, ref in refs.items()}
        meta = node.stage.load()(
            StageContext(folders, node.params, out, NullReporter(), _NoCheckpoints(), scratch=work)
        )
        folder = f"{folder_prefix(job, artifact)}{job.attempt}-{uuid.uuid4().hex[:8]}"
        return artifacts.write(folder, out, artifact=artifact, stage=node.stage.name, meta=meta)
