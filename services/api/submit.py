"""What a request for a job means, at the moment it is accepted."""

from __future__ import annotations

from services.common.catalog import Catalog, ready_version
from tlm_core.errors import InvalidRequest
from tlm_core.jobs.spec import JobSpec, Resolved
from tlm_core.training.recipe import resolve

_MAX_SEED = 2**32 - 1


def resolve_job(catalog: Catalog, tenant: str, spec: JobSpec) -> Resolved:
    """Pin data set, corpus version and recipe, so that nothing published later changes the job.

    Raises InvalidRecipe, InvalidRequest, NotFound, and Conflict for a corpus that is not ready.
    """
    recipe = resolve(spec.recipe, spec.scale, spec.set)
    selects = recipe.selection.selector != "none"
    if selects and spec.corpus is None:
        raise InvalidRequest(
            f"the selector '{recipe.selection.selector}' needs a corpus; give 'corpus', or set "
            "'selection.selector' to 'none' to train on the task alone"
        )
    if len(set(spec.seeds)) < len(spec.seeds):
        raise InvalidRequest("the same seed stands twice in 'seeds'; each seed is one run")
    if not all(0 <= seed <= _MAX_SEED for seed in spec.seeds):
        raise InvalidRequest(f"seeds must lie in 0..{_MAX_SEED}")
    dataset = catalog.dataset(tenant, spec.dataset)
    corpus_name = corpus_version = None
    if selects and spec.corpus is not None:
        corpus_name, _, asked = spec.corpus.partition("@")
        corpus = catalog.corpus(tenant, corpus_name)
        latest = catalog.loads(tenant, corpus_name, limit=1)
        corpus_version = ready_version(corpus, asked or None, latest[0] if latest else None).version
    return Resolved(
        dataset_id=dataset.id,
        dataset=dataset.raw,
        dataset_options=dataset.options,
        corpus_name=corpus_name,
        corpus_version=corpus_version,
        recipe=recipe,
    )
