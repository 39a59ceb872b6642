"""Asking the retriever for a job's selection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from services.common.retriever_client import RetrieverClient
from tlm_core.artifacts import ManifestRef
from tlm_core.errors import TLMError
from tlm_core.jobs.plan import Node
from tlm_core.jobs.spec import JobRecord


@dataclass(frozen=True)
class SelectionState:
    """How far a selection is, in queries: with `ref` it is ready, with `error` it failed."""

    done: int = 0
    total: int = 0
    ref: ManifestRef | None = None
    error: TLMError | None = None


class Selections(Protocol):
    """Makes the selection of a job when asked again and again. Raises Unavailable while it cannot."""

    def ask(self, job: JobRecord, node: Node, artifact: str, *, task: ManifestRef) -> SelectionState: ...


class RetrieverSelections:
    """Selections made by the retriever service."""

    def __init__(self, client: RetrieverClient) -> None:
        self._client = client

    def ask(self, job: JobRecord, node: Node, artifact: str, *, task: ManifestRef) -> SelectionState:
        """Look first, ask when the retriever knows nothing of it (not asked yet, or it was restarted)."""
        raise NotImplementedError
