"""Submit, retry and clone jobs, for the API and the dashboard. A new job pins the versions of its data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from services.api.estimate import proposed
from services.api.job_artifacts import report_of
from services.common.catalog import dataset_keys
from services.common.catalog_records import DatasetRecord
from services.common.problem import validation_problem
from tlm_core.errors import Conflict, IllegalTransition, InvalidRequest, NotReady
from tlm_core.jobs.plan import plan_of
from tlm_core.jobs.spec import FROM_JOB, DatasetInput, JobRecord, JobSpec, Origin, Resolved, ReusedArtifact
from tlm_core.jobs.states import RETRYABLE, TERMINAL, State
from tlm_core.kinds import KINDS
from tlm_core.selection.selectors import SELECTORS
from tlm_core.selection.text_analysis import analysis_of, check_query
from tlm_core.stages import REFIT, REFIT_LINEAR
from tlm_core.training.recipe import Recipe, resolve

if TYPE_CHECKING:
    from services.api.parts import Parts

_MAX_SEED = 2**32 - 1
_SELECTOR = "selection.selector"


def submit_job(parts: Parts, tenant: str, spec: JobSpec, key: str | None) -> tuple[JobRecord, bool]:
    """Create a job, and return (job, whether it is new). For a repeated idempotency key `key`, return the earlier job.

    Raises the errors of `resolve_job`, and IdempotencyMismatch if the key belongs to another request.
    """
    return _create(parts, tenant, spec, key, None, lambda: resolve_job(parts, tenant, spec))


def retry_job(parts: Parts, job: JobRecord, key: str | None) -> tuple[JobRecord, bool]:
    """Create a job with the inputs and the finished stages of `job`. Return the same tuple as `submit_job`.

    Raises IllegalTransition if `job` is neither failed nor cancelled, and IdempotencyMismatch as `submit_job` does.
    """
    if job.state not in RETRYABLE:
        raise IllegalTransition(
            f"Job {job.id} is {job.state}. You can retry only failed and cancelled jobs. Clone this job instead.",
            state=job.state,
        )
    origin = Origin(job=job.id, how="retry")
    return _create(parts, job.tenant, job.spec, key, origin, lambda: (job.spec, job.resolved))


def clone_job(parts: Parts, job: JobRecord, changes: Mapping[str, object], key: str | None) -> tuple[JobRecord, bool]:
    """Create a job with the request of `job` and the given `changes`. Return the same tuple as `submit_job`.

    Raises InvalidRequest for invalid changes, and the errors of `submit_job`.
    """
    spec = changed(job, changes)
    origin = Origin(job=job.id, how="clone")
    return _create(parts, job.tenant, spec, key, origin, lambda: resolve_job(parts, job.tenant, spec))


def _create(
    parts: Parts,
    tenant: str,
    spec: JobSpec,
    key: str | None,
    origin: Origin | None,
    resolve: Callable[[], tuple[JobSpec, Resolved]],
) -> tuple[JobRecord, bool]:
    """Return (job, whether it is new). If an earlier request had the idempotency key `key`, return the earlier job.

    resolve: returns (complete request, resolved inputs). The function calls `resolve` only for a new job, because the
    data of an earlier job may be deleted.
    """
    if key and (job := parts.jobs.submitted_with(tenant, spec, key, origin)):
        return job, False
    spec, resolved = resolve()
    seconds = parts.estimator.node_seconds(proposed(tenant, spec, resolved))
    resolved = resolved.model_copy(update={"node_seconds": seconds})
    needs = dataset_keys(tenant, (dataset.id for dataset in resolved.datasets))
    return parts.jobs.submit(tenant, spec, resolved, idempotency_key=key, origin=origin, needs=needs)


def resolve_job(parts: Parts, tenant: str, spec: JobSpec) -> tuple[JobSpec, Resolved]:
    """Return (complete request, resolved inputs). The inputs are versions of the data, and all values of the recipe.

    Raises InvalidRecipe, InvalidRequest, NotFound, and NotReady or Conflict if the corpus or a named job is not usable.
    """
    # `tlm` reads such names as aliases or ids. JobSpec accepts the names, because stored jobs may have them.
    if spec.name and ("@" in spec.name or spec.name.startswith("job_")):
        raise InvalidRequest(f"Invalid name '{spec.name}'. Choose a name without @ that does not start with job_.")
    if spec.source_job is not None:
        return _from_source(parts, tenant, spec, parts.jobs.get(tenant, spec.source_job))
    recipe = resolve(spec.recipe, spec.scale, _overrides(spec), precision=parts.settings.precision)
    options = spec.definition.pin(spec.options, recipe, _GatewayLookup(parts, tenant))
    spec.check(recipe, options)
    for used in spec.definition.recipes(options, recipe):
        _check_folders(used, parts.settings.model_folders)
    _check_corpus(spec, recipe)
    _check_seeds(spec)
    records = [parts.catalog.dataset(tenant, name) for name in spec.names]
    first = records[0]
    if recipe.selection.definition.source == "dataset" and first.summary.selection is None:
        raise InvalidRequest(
            f"'{_SELECTOR}' is '{recipe.selection.selector}', but the dataset '{spec.dataset}' has no selection "
            "file. Upload the dataset again with a file in the form field 'selection' (columns text and rank), or use "
            "another selector."
        )
    for name, record in zip(spec.names, records, strict=True):
        recipe.finetune.check_weights(name, bool(record.summary.labels))
    corpus_name = corpus_version = None
    if spec.corpus is not None:
        corpus_name, _, version = spec.corpus.partition("@")
        ready = parts.catalog.ready_version(tenant, corpus_name, version or None)
        corpus_version = ready.version
        language = str(first.options.get("language", "en"))
        check_query(recipe.selection.query, language)
        if recipe.selection.definition.size != "source":
            _check_language(spec, language, ready.language)
    original = spec.options.model_dump(mode="json")
    pinned = {name: value for name, value in options.model_dump(mode="json").items() if value != original[name]}
    return spec, Resolved(
        dataset_id=first.id,
        dataset=first.raw,
        dataset_options=first.options,
        corpus_name=corpus_name,
        corpus_version=corpus_version,
        others=_other_datasets(spec.names, records),
        pinned_options=pinned,
        recipe=recipe,
    )


def _overrides(spec: JobSpec) -> Mapping[str, object]:
    """Return the overrides of a request. Add the selector `none` if the request has neither corpus nor selector.

    The scale `instant` selects no passages, so it needs no selector.
    """
    if spec.corpus is not None or _SELECTOR in spec.overrides or spec.scale == "instant":
        return spec.overrides
    return {**spec.overrides, _SELECTOR: "none"}


@dataclass(frozen=True)
class _GatewayLookup:
    """Reads jobs and datasets of a tenant for `Kind.pin`."""

    parts: Parts
    tenant: str

    def job(self, job_id: str) -> JobRecord:
        return self.parts.jobs.get(self.tenant, job_id)

    def report(self, job: JobRecord) -> Mapping[str, object]:
        return report_of(self.parts.jobs, self.parts.artifacts, job)

    def dataset(self, name: str) -> DatasetInput:
        return _dataset_input(self.parts.catalog.dataset(self.tenant, name))


def _dataset_input(record: DatasetRecord) -> DatasetInput:
    return DatasetInput(id=record.id, ref=record.raw, options=record.options)


def _check_corpus(spec: JobSpec, recipe: Recipe) -> None:
    selector, selects = recipe.selection.selector, recipe.selection.needs_corpus
    if selects and spec.corpus is None:
        raise InvalidRequest(
            f"The selector '{selector}' needs a corpus. Set 'corpus', or omit '{_SELECTOR}' to train on the task alone."
        )
    if spec.corpus is not None and spec.scale == "instant":
        raise InvalidRequest("The scale 'instant' uses no corpus. Omit 'corpus'.")
    if spec.corpus is not None and not selects:
        raise InvalidRequest(f"'{_SELECTOR}' is '{selector}', which uses no corpus. Omit 'corpus'.")


def _check_language(spec: JobSpec, dataset: str, corpus: str) -> None:
    """Raise InvalidRequest if the search splits the languages `dataset` and `corpus` into terms by different rules."""
    if analysis_of(dataset) != analysis_of(corpus):
        raise InvalidRequest(
            f"The dataset '{spec.dataset}' has the language '{dataset}', but the corpus '{spec.corpus}' has the "
            f"language '{corpus}'. The search splits their texts into different terms. Use a corpus in the language of "
            "the dataset. If one of the languages is wrong, upload this dataset or corpus again with its 'language'."
        )


def _check_seeds(spec: JobSpec) -> None:
    if len(set(spec.seeds)) < len(spec.seeds):
        raise InvalidRequest("A seed occurs twice in 'seeds'. Remove the duplicate.")
    if not all(0 <= seed <= _MAX_SEED for seed in spec.seeds):
        raise InvalidRequest(f"A seed in 'seeds' is out of range. Use whole numbers from 0 to {_MAX_SEED}.")
    if spec.scale == "instant" and len(spec.seeds) > 1:
        raise InvalidRequest(
            "The scale 'instant' trains only the linear model, which uses no seed. Give at most one seed."
        )


def _other_datasets(names: Sequence[str], records: Sequence[DatasetRecord]) -> tuple[DatasetInput, ...]:
    """Return all datasets of a request except the first. Raises InvalidRequest if a dataset occurs twice."""
    names_by_id: dict[str, str] = {}
    for name, record in zip(names, records, strict=True):
        if earlier := names_by_id.get(record.id):
            raise InvalidRequest(
                f"'{earlier}' and '{name}' are the same dataset ({record.id}). Name each dataset once."
            )
        names_by_id[record.id] = name
    return tuple(map(_dataset_input, records[1:]))


def _from_source(parts: Parts, tenant: str, spec: JobSpec, source: JobRecord) -> tuple[JobSpec, Resolved]:
    """Return (complete request, resolved inputs) of a job that starts from the dense model of the job `source`.

    Raises InvalidRequest, NotFound, Conflict, and NotReady if `source` has not succeeded.
    """
    if not source.spec.definition.extends_train:
        names = ", ".join(kind.name for kind in KINDS.values() if kind.extends_train)
        raise InvalidRequest(
            f"Job {source.id} has kind '{source.spec.kind}', which provides no dense model to start from. Name a job "
            f"of one of these kinds: {names}."
        )
    if source.state is not State.SUCCEEDED:
        if source.state in TERMINAL or source.state is State.CANCELLING:
            message = f"Job {source.id} is {source.state}. Name a succeeded job from the list of models."
            raise Conflict(message, state=source.state)
        remedy = "Resume it, and wait" if source.state is State.PAUSED else "Wait"
        raise NotReady(f"Job {source.id} is {source.state}. {remedy} until it has succeeded.", state=source.state)
    original = changed(source, {})
    for name in FROM_JOB:
        if name in spec.model_fields_set and getattr(spec, name) != getattr(original, name):
            raise InvalidRequest(f"The request sets '{name}', which job {source.id} already determines. Omit '{name}'.")
    spec = spec.model_copy(update={name: getattr(original, name) for name in FROM_JOB})
    resolved = source.resolved.model_copy(
        update={"reused": _reused(source, parts.jobs.result_of(source)), "pinned_options": {}}
    )
    parts.catalog.dataset(tenant, resolved.dataset_id)
    spec.check(resolved.recipe)
    _check_folders(resolved.recipe, parts.settings.model_folders)
    return spec, resolved


def _reused(source: JobRecord, artifacts: Mapping[str, ReusedArtifact]) -> dict[str, ReusedArtifact]:
    """Return node name → artifact, for all nodes before the evaluation. Omit refits, which trained on validation.

    artifacts: node name → artifact of `source`. Raises Conflict if another release computed the artifacts.
    """
    digests = {name: artifact.ref.digest for name, artifact in artifacts.items()}
    nodes = [node for node in plan_of(source).behind("evaluate") if node.stage not in (REFIT, REFIT_LINEAR)]
    for node in nodes:
        if node.name not in artifacts or node.artifact_id(digests, source.id) != artifacts[node.name].artifact:
            raise Conflict(
                f"Another release of the service trained job {source.id}. This release cannot use the job's artifact "
                f"'{node.name}'. Clone that job, wait until it has succeeded, and send the id of the clone."
            )
    return {node.name: artifacts[node.name] for node in nodes}


def changed(job: JobRecord, changes: Mapping[str, object]) -> JobSpec:
    """Return the spec of `job` with `changes`: field of the spec → new value. Raises InvalidRequest with every error.

    - The spec names the pinned version of an unchanged dataset or corpus. Exception: if the job has several datasets,
      the spec retains their names.
    - Changes of `overrides` and `options` replace single keys. A new kind removes the old options.
    - A new corpus removes the selector 'none'. A selector or scale that uses no corpus removes the corpus.
    """
    resolved, old = job.resolved, job.spec.model_dump(mode="json")
    same_kind = changes.get("kind", job.spec.kind) == job.spec.kind
    if not same_kind:
        del old["options"]
    # The options of a job with several datasets refer to the names in the request. So these names stay.
    dataset = job.spec.dataset if same_kind and resolved.others else resolved.dataset_id
    values = old | {"dataset": dataset, "corpus": resolved.corpus} | dict(changes)
    for name in ("overrides", "options"):
        if isinstance(old.get(name), dict) and isinstance(changes.get(name), dict):
            values[name] = old[name] | changes[name]
    try:
        return JobSpec.model_validate(_agreeing(values, changes))
    except ValidationError as error:
        problem = validation_problem(error.errors(), "body")
        raise InvalidRequest(problem.detail, faults=problem.errors) from error


def _agreeing(values: dict[str, object], changes: Mapping[str, object]) -> dict[str, object]:
    """Return the spec fields `values` with a corpus and a selector that agree. `values` already contains `changes`.

    If the changes set a corpus but no selector, remove the selector 'none'. If the changes do not set the corpus,
    remove a corpus that the selector or the scale does not use.
    """
    overrides = values["overrides"] if isinstance(values["overrides"], dict) else {}
    new, selector = changes.get("overrides"), overrides.get(_SELECTOR)
    if "corpus" not in changes:
        known = SELECTORS.get(selector) if isinstance(selector, str) else None
        uses_none = (known and known.source != "corpus") or values.get("scale") == "instant"
        return values | {"corpus": None} if uses_none else values
    if changes["corpus"] is not None and selector == "none" and not (isinstance(new, dict) and _SELECTOR in new):
        return values | {"overrides": {key: value for key, value in overrides.items() if key != _SELECTOR}}
    return values


def _check_folders(recipe: Recipe, allowed: tuple[Path, ...]) -> None:
    """Raise InvalidRequest if the recipe names a folder outside of `allowed`. Workers could read any folder."""
    for key, value in (("model.init", recipe.model.init), ("tokenizer.source", recipe.tokenizer.source)):
        path = Path(value).resolve()
        if value.startswith("/") and not any(path.is_relative_to(folder.resolve()) for folder in allowed):
            raise InvalidRequest(
                f"Jobs may not use the folder {value} ('{key}'). Use hub:ID, or ask the operator to add the folder to "
                "TLM_API_MODEL_FOLDERS."
            )
