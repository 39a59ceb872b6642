"""Asking the retriever for a job's selection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from services.common.artifacts_of import folders_of
from services.common.retriever_client import RetrieverClient, SelectionRequest
from tlm_core.artifacts import ManifestRef
from tlm_core.errors import TLMError
from tlm_core.jobs.plan import Node
from tlm_core.jobs.spec import JobRecord


@dataclass(frozen=True)
class SelectionState:
    """How far a selection is, in `unit`, `rate` of them a second: with `ref` it is ready, with `error` it failed."""

    done: int = 0
    total: int = 0
    unit: str = "queries"
    rate: float | None = None
    ref: ManifestRef | None = None
    error: TLMError | None = None


class Selections(Protocol):
    """Makes the selection of a job when asked again and again. Raises Unavailable while it cannot.

    stop: of whatever attempt of the job; answers whether it runs no more.
    """

    def ask(self, job: JobRecord, node: Node, artifact: str, *, task: ManifestRef) -> SelectionState: ...

    def stop(self, job: JobRecord, artifact: str) -> bool: ...


class RetrieverSelections:
    """Selections made by the retriever service."""

    def __init__(self, client: RetrieverClient) -> None:
        self._client = client

    def ask(self, job: JobRecord, node: Node, artifact: str, *, task: ManifestRef) -> SelectionState:
        """Look first; ask for it when the retriever knows nothing of it (not asked yet, or restarted since).

        A failure that may pass (an index that was away) is asked for again, and raised so that it is seen.
        """
        run = self._client.get_selection(artifact)
        failure = run.failure
        if run.state == "unknown" or (run.state == "failed" and failure is not None and failure.retryable):
            self._client.put_selection(artifact, self._request(job, node, artifact, task))
        if failure is not None and failure.retryable:
            raise failure
        if run.state == "failed":
            return SelectionState(error=failure or TLMError("the retriever failed without saying why; see its log"))
        ref = run.ref if run.state == "ready" else None
        return SelectionState(run.done, run.total, run.unit, run.rate, ref)

    def stop(self, job: JobRecord, artifact: str) -> bool:
        """See `Selections`. Another job that waits for this very selection asks for it under its own name then."""
        return self._client.stop_selection(artifact, folders_of(job, artifact))

    @staticmethod
    def _request(job: JobRecord, node: Node, artifact: str, task: ManifestRef) -> SelectionRequest:
        resolved = job.resolved
        return SelectionRequest(
            tenant=job.tenant,
            corpus=resolved.corpus_name,
            version=resolved.corpus_version,
            task=task,
            params=dict(node.params["selection"]),
            seed=node.params["seed"],
            prefix=f"{folders_of(job, artifact)}{job.attempt}",
        )
