"""What a request for a job means, at the moment it is accepted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from services.api.compare import differences
from services.api.job_artifacts import artifact_of
from services.api.parts import Parts
from services.common.catalog import Catalog, ready_version
from services.common.catalog_records import DatasetRecord
from services.common.problem import validation_problem
from tlm_core.compression.masks import Mask
from tlm_core.errors import Conflict, InvalidRequest
from tlm_core.jobs.nodes import DatasetInput, ReusedArtifact
from tlm_core.jobs.plan import plan_of
from tlm_core.jobs.spec import FROM_JOB, JobRecord, JobSpec, Resolved
from tlm_core.jobs.states import State
from tlm_core.jobs.studies import check_kind, recipes_of
from tlm_core.selection.selectors import SELECTORS
from tlm_core.training.recipe import Recipe, resolve

_MAX_SEED = 2**32 - 1
_SELECTOR = "selection.selector"
# Kinds of jobs that leave nothing with heads and blocks to prune, and what they leave.
_NOT_PRUNED = {
    "learning_curve": "leaves a BiLSTM, which has no attention heads",
    "share_tickets": "compares systems and leaves no model",
}


def resolve_job(parts: Parts, tenant: str, spec: JobSpec) -> tuple[JobSpec, Resolved]:
    """The request in full, and what it means: data sets, corpus version, tickets and recipe are pinned, so that nothing
    published later changes the job.

    Raises InvalidRecipe, InvalidRequest, NotFound, and Conflict for a corpus, a ticket or a job that is not ready.
    """
    if spec.pruned is not None:
        return _pruning(parts, tenant, spec, parts.jobs.get(tenant, spec.pruned))
    catalog, allowed = parts.catalog, parts.settings.model_folders
    recipe = resolve(spec.recipe, spec.scale, spec.set, precision=parts.settings.precision)
    tickets = _tickets(parts, tenant, spec, recipe)
    check_kind(spec, recipe, tickets)
    for used in recipes_of(spec, recipe):
        _check_folders(used, allowed)
    selects = recipe.selection.needs_corpus
    if selects and spec.corpus is None:
        raise InvalidRequest(
            f"the selector '{recipe.selection.selector}' needs a corpus; give 'corpus', or set "
            f"'{_SELECTOR}' to 'none' to train on the task alone"
        )
    if spec.corpus is not None and not selects:
        raise InvalidRequest(
            f"'{_SELECTOR}' is '{recipe.selection.selector}', which takes nothing from a corpus; leave 'corpus' "
            "out, or take another selector"
        )
    if len(set(spec.seeds)) < len(spec.seeds):
        raise InvalidRequest("the same seed stands twice in 'seeds'; each seed is one run")
    if not all(0 <= seed <= _MAX_SEED for seed in spec.seeds):
        raise InvalidRequest(f"seeds must lie in 0..{_MAX_SEED}")
    dataset = catalog.dataset(tenant, spec.dataset)
    if recipe.selection.definition.source == "dataset":
        _check_given(spec, "selection" in dataset.summary)
    corpus_name = corpus_version = None
    if spec.corpus is not None:
        corpus_name, _, asked = spec.corpus.partition("@")
        corpus = catalog.corpus(tenant, corpus_name)
        # Only what is not ready has to be explained, and each look costs the submitter time.
        latest = [] if corpus.ready() else catalog.loads(tenant, corpus_name, limit=1)
        corpus_version = ready_version(corpus, asked or None, latest[0] if latest else None).version
    return spec, Resolved(
        dataset_id=dataset.id,
        dataset=dataset.raw,
        dataset_options=dataset.options,
        corpus_name=corpus_name,
        corpus_version=corpus_version,
        others=_others(catalog, tenant, spec, dataset.id),
        tickets=tickets,
        recipe=recipe,
    )


def _pruning(parts: Parts, tenant: str, spec: JobSpec, trained: JobRecord) -> tuple[JobSpec, Resolved]:
    """A request to prune the model of the job `trained`, with all that this job brings.

    Tickets are found in one shot (arXiv 2105.12002, section 3), so of a `prune` job it is the dense model that is
    pruned, and not what it has left of that.
    """
    if (kind := trained.spec.kind) in _NOT_PRUNED:
        raise InvalidRequest(
            f"'prune.job' names {trained.id}, but a job of kind '{kind}' {_NOT_PRUNED[kind]}; name one of kind 'train' "
            "or 'prune', or prune by the recipe, without 'prune.job'"
        )
    if trained.state is not State.SUCCEEDED:
        raise Conflict(
            f"{trained.id} is {trained.state}; its model can be pruned when it has succeeded", state=trained.state
        )
    own = changed(trained, {})
    for name in FROM_JOB:
        if name in spec.model_fields_set and getattr(spec, name) != getattr(own, name):
            raise InvalidRequest(f"'prune.job' brings '{name}' from {trained.id}; leave '{name}' out")
    spec = spec.model_copy(update={name: getattr(own, name) for name in FROM_JOB})
    resolved = trained.resolved.model_copy(update={"reused": _reused(trained)})
    parts.catalog.dataset(tenant, resolved.dataset_id)
    check_kind(spec, resolved.recipe)
    _check_folders(resolved.recipe, parts.settings.model_folders)
    return spec, resolved


def _reused(trained: JobRecord) -> dict[str, ReusedArtifact]:
    """What the job has left of each stage up to its finetuned models. Raises Conflict where that has an older form."""
    assert trained.result is not None, "a job that succeeded tells what it has left"
    left = {name: ReusedArtifact.model_validate(entry) for name, entry in trained.result["artifacts"].items()}
    digests = {name: one.ref.digest for name, one in left.items()}
    nodes = plan_of(trained).behind("evaluate")
    for node in nodes:
        if node.name not in left or node.artifact_id(digests, trained.id) != left[node.name].artifact:
            raise Conflict(
                f"{trained.id} was trained by another release, whose stage '{node.name}' left another form; clone it, "
                "and prune the clone"
            )
    return {node.name: left[node.name] for node in nodes}


def _others(catalog: Catalog, tenant: str, spec: JobSpec, first: str) -> tuple[DatasetInput, ...]:
    """The data sets that share an encoder with the first one, whose id is given.

    Raises NotFound, and InvalidRequest for one that stands twice, by whatever name.
    """
    called, found = {first: spec.dataset}, []
    for name in spec.share_tickets.others if spec.share_tickets else ():
        one = catalog.dataset(tenant, name)
        if one.id in called:
            raise InvalidRequest(f"'{called[one.id]}' and '{name}' are the same data set ({one.id}); name it once")
        called[one.id] = name
        found.append(_data(one))
    return tuple(found)


def _data(record: DatasetRecord) -> DatasetInput:
    return DatasetInput(id=record.id, ref=record.raw, options=record.options)


def _tickets(parts: Parts, tenant: str, spec: JobSpec, recipe: Recipe) -> dict[str, Mask]:
    """The masks of the tickets that are named by the `prune` job that found them."""
    asked = spec.share_tickets.tickets if spec.share_tickets else {}
    return {name: _found(parts, tenant, name, job, recipe) for name, job in asked.items() if isinstance(job, str)}


def _found(parts: Parts, tenant: str, name: str, job_id: str, recipe: Recipe) -> Mask:
    """The mask of the super ticket that a job found on the same data, with the same model and finetuning."""
    job = parts.jobs.get(tenant, job_id)
    if job.spec.kind != "prune":
        raise InvalidRequest(
            f"the ticket of '{name}' names {job_id}, which is of kind '{job.spec.kind}'; name a job of kind 'prune'"
        )
    if job.resolved.datasets[0].content != _data(parts.catalog.dataset(tenant, name)).content:
        raise InvalidRequest(
            f"the ticket of '{name}' names {job_id}, which pruned on other data ({job.spec.dataset}), or read it with "
            "other options; if so meant, give the mask of its report in place of its id"
        )
    if job.resolved.recipe.finetune.rates:
        raise InvalidRequest(
            f"the ticket of '{name}' was found by {job_id} with several finetuning rates, where sharing has one; if so "
            "meant, give the mask of its report in place of its id"
        )
    if other := differences([_tuned_by(job.resolved.recipe), _tuned_by(recipe)]):
        keys = ", ".join(f"{one.key} ({one.values[0]} there, {one.values[1]} here)" for one in other)
        raise InvalidRequest(
            f"the ticket of '{name}' was found by {job_id} with other settings: {keys}; set them as there, or, if so "
            "meant, give the mask of its report in place of its id"
        )
    report = parts.artifacts.read_json(artifact_of(parts.jobs, job, "evaluate"), "report.json")
    return Mask.from_dict(report["super_ticket"]["mask"])


def _tuned_by(recipe: Recipe) -> dict[str, Any]:
    """The model and how it is finetuned, in which finding and sharing tickets agree; sharing always resets the head."""
    return recipe.model_dump(mode="json", include={"model", "finetune"}, exclude={"finetune": {"reset_head"}})


def _check_given(spec: JobSpec, brought: bool) -> None:
    if spec.kind not in ("train", "prune"):
        raise InvalidRequest(
            f"a job of kind '{spec.kind}' cannot take the selection that a data set brings; take another selector"
        )
    if not brought:
        raise InvalidRequest(
            f"the data set '{spec.dataset}' brings no selection, which the selector 'given' takes; upload it with a "
            "part 'selection' (a file with the columns text and rank), or take another selector"
        )


def changed(job: JobRecord, changes: Mapping[str, Any]) -> JobSpec:
    """The spec of a job with `changes`, data set and corpus pinned to what they meant where they are not changed.

    Keys of `set` and of the kind's options are changed one by one. Another kind has none of the old kind's options.
    Of corpus and selector, the one that is given ends what the other was. Raises InvalidRequest with every field at
    fault.
    """
    resolved, own, kind = job.resolved, job.spec.model_dump(mode="json"), changes.get("kind", job.spec.kind)
    if kind != job.spec.kind:
        own.pop(job.spec.kind, None)
    corpus = f"{resolved.corpus_name}@{resolved.corpus_version}" if resolved.corpus_name else None
    # Options of several data sets speak of them by the names that they were given, so those stay.
    dataset = job.spec.dataset if kind == "share_tickets" and resolved.others else resolved.dataset_id
    values = own | {"dataset": dataset, "corpus": corpus} | dict(changes)
    for name in ("set", "learning_curve", "prune", "share_tickets"):
        if isinstance(own.get(name), dict) and isinstance(changes.get(name), dict):
            values[name] = own[name] | changes[name]
    try:
        return JobSpec.model_validate(_agreeing(values, changes))
    except ValidationError as error:
        problem = validation_problem([{**one, "loc": ("body", *one["loc"])} for one in error.errors()])
        raise InvalidRequest(problem["detail"], faults=problem["errors"]) from error


def _ignores_corpus(selector: object) -> bool:
    return isinstance(selector, str) and selector in SELECTORS and SELECTORS[selector].source != "corpus"


def _agreeing(values: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Of corpus and selector, the one that is changed ends what the other was: clients write `none` where no corpus is
    named."""
    overrides = values["set"]
    selector = overrides.get(_SELECTOR) if isinstance(overrides, dict) else None
    if "corpus" not in changes:
        return values | {"corpus": None} if _ignores_corpus(selector) else values
    if changes["corpus"] is not None and selector == "none" and _SELECTOR not in changes.get("set", {}):
        return values | {"set": {key: value for key, value in overrides.items() if key != _SELECTOR}}
    return values


def _check_folders(recipe: Recipe, allowed: tuple[Path, ...]) -> None:
    """A path is opened where the workers run, with their rights: only folders that the operator named will do."""
    for key, value in (("model.init", recipe.model.init), ("tokenizer.source", recipe.tokenizer.source)):
        if value.startswith("/") and not any(Path(value).resolve().is_relative_to(folder) for folder in allowed):
            raise InvalidRequest(
                f"'{key}' names the folder {value}, which jobs may not use here; use hub:ID, or ask the operator to "
                "name the folder in TLM_API_MODEL_FOLDERS"
            )
