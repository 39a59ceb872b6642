"""Request the selection of a job from the retriever."""

from __future__ import annotations

from collections.abc import Callable

from services.common.retriever_client import RetrieverClient, SelectionRequest, SelectionRun
from services.common.situation import folder_prefix
from tlm_core.artifacts import ManifestRef
from tlm_core.jobs.plan import Node
from tlm_core.jobs.spec import JobRecord
from tlm_core.training.params import SelectParams


class Selections:
    """The selections of jobs, which the retriever computes. Each call may raise Unavailable."""

    def __init__(self, client: RetrieverClient) -> None:
        self._client = client

    def request(
        self, job: JobRecord, node: Node, artifact: str, *, task: ManifestRef, check_owner: Callable[[], None]
    ) -> SelectionRun:
        """Start the selection unless it runs or is ready, and return its state. Call it until the selection is ready.

        check_owner: raises StaleAttempt if another coordinator holds the job. After a retryable failure, start the
        selection again and raise the failure, so that it is reported.
        """
        run = self._client.get_selection(artifact)
        failure = run.failure
        if run.state == "unknown" or (run.state == "failed" and failure is not None and failure.retryable):
            check_owner()
            self._client.put_selection(artifact, self._body(job, node, artifact, task))
        if failure is not None and failure.retryable:
            raise failure
        return run

    def stop(self, job: JobRecord, artifact: str) -> bool:
        """Stop the selection of any attempt of the job. Returns whether it has stopped.

        Another job that waits for the same selection then requests it again.
        """
        return self._client.stop_selection(artifact, folder_prefix(job, artifact))

    @staticmethod
    def _body(job: JobRecord, node: Node, artifact: str, task: ManifestRef) -> SelectionRequest:
        resolved, params = job.resolved, node.params
        assert isinstance(params, SelectParams)
        return SelectionRequest(
            tenant=job.tenant,
            corpus=resolved.corpus_name,
            version=resolved.corpus_version,
            task=task,
            params=params.selection.model_dump(mode="json"),
            seed=params.seed,
            prefix=f"{folder_prefix(job, artifact)}{job.attempt}",
        )
