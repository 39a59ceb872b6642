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
        """Return the state of a selection. Start the selection if the retriever does not know it.

        After a retryable failure, start the selection again and raise the failure, so that the job reports the failure.
        check_owner: raises StaleAttempt if another coordinator holds the job.
        """
        run = self._client.get_selection(artifact)
        failure = run.failure
        if run.state == "unknown" or (run.state == "failed" and failure is not None and failure.retryable):
            check_owner()
            assert isinstance(node.params, SelectParams)
            body = SelectionRequest(
                tenant=job.tenant,
                corpus=job.resolved.corpus_name,
                version=job.resolved.corpus_version,
                task=task,
                params=node.params.selection.model_dump(mode="json"),
                seed=node.params.seed,
                prefix=f"{folder_prefix(job, artifact)}{job.attempt}",
            )
            self._client.put_selection(artifact, body)
        if failure is not None and failure.retryable:
            raise failure
        return run

    def stop(self, job: JobRecord, artifact: str) -> bool:
        """Stop the selection if an attempt of the job has started it. Return False while that selection still runs.

        Another job that waits for the same selection then requests it again.
        """
        return self._client.stop_selection(artifact, folder_prefix(job, artifact))
