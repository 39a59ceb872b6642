"""Kind `share_tickets`: several tasks on one encoder, each with its own ticket (arXiv 2105.12002, section 4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import Field, field_validator

from tlm_core.compression.masks import Mask, removals
from tlm_core.compression.params import MergeParams, PartParams, ShareParams
from tlm_core.errors import InvalidRequest
from tlm_core.jobs.nodes import (
    baseline_node,
    before_training,
    check_encoder,
    gather_group,
    group_by_seed,
    importance_node,
    joint_node,
    prepare_node,
    select_node,
    validate_nodes,
)
from tlm_core.jobs.plan import Node, Plan
from tlm_core.jobs.spec import KindOptions, PlanInputs
from tlm_core.json_files import read_json
from tlm_core.kinds.kind import FormField, Kind, Lookup
from tlm_core.stages import FINETUNE
from tlm_core.training.params import FinetuneParams, SeedsParams
from tlm_core.training.recipe import OWN_STARTS, Recipe, differences
from tlm_core.training.stage import Place, Stage

MERGE = Stage("merge", "tlm_core.tasks.merge:merge_stage", 3, MergeParams, Place.COORDINATOR)
PART = Stage("part", "tlm_core.compression.sharing:part", 3, PartParams)
SHARE = Stage("share", "tlm_core.compression.sharing:share", 5, ShareParams, parallel=True)
SHARED_REPORT = Stage("shared_report", "tlm_core.compression.shared_report:shared_report", 13, SeedsParams)


class ShareTicketsOptions(KindOptions):
    """Datasets and tickets. A ticket is a level, the content of a mask file, or the id of a finished `prune` job."""

    others: tuple[str, ...] = Field(
        min_length=1, max_length=19, description="datasets in addition to `dataset`, id or name"
    )
    level: float = Field(
        0.15, gt=0, lt=1, description="share of heads and blocks to remove for datasets without a ticket"
    )
    tickets: dict[str, float | Mask | str] = Field(
        {}, description="id or name of a dataset, as in the request → level, mask, or id of a `prune` job"
    )
    as_published: bool = Field(False, description="compute importance as the authors' released code does")

    def ticket(self, name: str) -> float | Mask:
        """Return the level or mask of the dataset `name`. Call this after `pin`, which replaces job ids by masks."""
        ticket = self.tickets.get(name, self.level)
        assert not isinstance(ticket, str), "`pin` replaces ids by masks"
        return ticket

    @field_validator("tickets", mode="before")
    @classmethod
    def _check_tickets(cls, tickets: object) -> object:
        return {name: _ticket(name, value) for name, value in tickets.items()} if isinstance(tickets, dict) else tickets


def _ticket(name: str, value: object) -> object:
    """Return the ticket `value` of the dataset `name`, with a mask as `Mask`. Raises ValueError if it is invalid."""
    if isinstance(value, dict):
        try:
            return Mask.from_dict(value)
        except InvalidRequest as error:
            raise ValueError(f"Invalid ticket of '{name}'. {error.message}") from error
    if isinstance(value, str) and not value.startswith("job_"):
        raise ValueError(
            f"Invalid ticket of '{name}': '{value[:80]}'. Expected a level, a mask, or the id of a `prune` job."
        )
    if isinstance(value, int | float) and not 0 < value < 1:
        raise ValueError(f"Invalid ticket of '{name}': {value}. A level must be above 0 and below 1.")
    return value


def pin(options: ShareTicketsOptions, recipe: Recipe, lookup: Lookup) -> ShareTicketsOptions:
    """Return the options with super tickets in place of job ids. Raises NotFound, NotReady or InvalidRequest."""
    masks = {name: _mask(name, job, recipe, lookup) for name, job in options.tickets.items() if isinstance(job, str)}
    return options.model_copy(update={"tickets": options.tickets | masks})


def _mask(name: str, job_id: str, recipe: Recipe, lookup: Lookup) -> Mask:
    """Return the super ticket of the `prune` job `job_id`, for the dataset `name`.

    Raises InvalidRequest if the job has another kind, other data, other settings than `recipe`, or several tries.
    """
    job, ticket = lookup.job(job_id), f"Invalid ticket of '{name}': job {job_id}"
    instead = "To use this ticket anyway, pass the mask from the job's report instead of the job id."
    if job.spec.kind != "prune":
        raise InvalidRequest(f"{ticket} has kind '{job.spec.kind}'. Name a job of kind 'prune'.")
    if job.resolved.datasets[0].content != lookup.dataset(name).content:
        raise InvalidRequest(f"{ticket} used other data ({job.spec.dataset}) or read it with other options. {instead}")
    if job.resolved.recipe.finetune.has_tries:
        raise InvalidRequest(
            f"{ticket} tried several finetuning rates or class weights. Sharing supports only one of each. {instead}"
        )
    if other := differences([_tuning(job.resolved.recipe), _tuning(recipe)]):
        keys = ", ".join(f"{key} ({theirs} in that job, {ours} in this one)" for key, (theirs, ours) in other.items())
        raise InvalidRequest(f"{ticket} used other settings: {keys}. Use the values of that job. {instead}")
    return Mask.from_dict(lookup.report(job)["super_ticket"]["mask"])


def _tuning(recipe: Recipe) -> dict[str, object]:
    """Return the settings that must be equal in pruning and sharing. `reset_head` is exempt: sharing always sets it."""
    return recipe.model_dump(mode="json", include={"model", "finetune"}, exclude={"finetune": {"reset_head"}})


def check(options: ShareTicketsOptions, recipe: Recipe, names: tuple[str, ...]) -> None:
    """Raise InvalidRequest if a ticket names no dataset of the job, or does not fit the model's layers and heads.

    Also raise InvalidRequest if the recipe tries several learning rates or class weights.
    """
    if unknown := sorted(options.tickets.keys() - set(names)):
        raise InvalidRequest(f"Unknown dataset '{unknown[0]}' in 'tickets'. The datasets are {', '.join(names)}.")
    if recipe.finetune.has_tries:
        raise InvalidRequest(
            "The kind 'share_tickets' does not try several learning rates or class weights. Omit 'finetune.rates', and "
            "set one rate as 'finetune.optimizer.lr'. Set 'finetune.class_weights' to none or balanced."
        )
    if recipe.model.init not in OWN_STARTS:
        return  # `check_encoder` checks published encoders, whose shape is unknown here
    for ticket in map(options.ticket, names):
        if isinstance(ticket, Mask):
            ticket.check(recipe.model.layers, recipe.model.heads)
        else:
            removals(ticket, recipe.model.layers, recipe.model.heads)


def plan(inputs: PlanInputs[ShareTicketsOptions]) -> Plan:
    """Return a plan with a linear model for each task, the merged tasks, and three systems for each seed.

    The systems are each task alone, all tasks together, and all tasks together with a ticket for each task.
    """
    names, recipe, seeds = inputs.names, inputs.recipe, inputs.seeds
    # The joint stage trains the labels of all tasks, so each task starts finetuning with its own head.
    recipe = recipe.model_copy(update={"finetune": recipe.finetune.model_copy(update={"reset_head": True})})
    tickets = [inputs.options.ticket(name) for name in names]
    nodes = validate_nodes(inputs)
    tasks = {f"task.{number}": node.name for number, node in enumerate(nodes)}
    nodes.append(Node("merge", MERGE, MergeParams(names=names), tasks))
    select = select_node(inputs, "merge")
    nodes += [*([select] if select else []), prepare_node(recipe, "merge", select)]
    parts = {f"prepared.{number}": f"part.{number}" for number in range(len(names))}
    for number in range(len(names)):
        nodes.append(Node(f"part.{number}", PART, PartParams(number=number), {"prepared": "prepare", "task": "merge"}))
    group = "baseline" if select else "main"  # so that workers fit linear models during the selection
    baselines = [baseline_node(group, task, f"baseline.{number}") for number, task in enumerate(tasks.values())]
    nodes += baselines
    levels = [ticket for ticket in tickets if isinstance(ticket, float)]
    masks = [ticket for ticket in tickets if isinstance(ticket, Mask)]
    nodes = before_training(nodes, check_encoder(inputs, recipe, levels, masks))
    trained: list[Node] = []
    for seed in seeds:
        trained += _one_seed(recipe, inputs.options, tickets, seed, parts)
    gathered = {"merged": "merge", "prepared": "prepare", **tasks, **parts}
    models = [*baselines, *(node for node in trained if node.stage in (FINETUNE, SHARE))]
    gathered |= {node.name: node.name for node in models}
    last = Node("report", SHARED_REPORT, SeedsParams(seeds=seeds), gathered, group=gather_group(seeds))
    return Plan((*nodes, *group_by_seed(trained, seeds), last), report="report", model="export")


def _one_seed(
    recipe: Recipe, options: ShareTicketsOptions, tickets: Sequence[float | Mask], seed: int, parts: Mapping[str, str]
) -> list[Node]:
    """Return the nodes of one seed for the three systems of `plan`, with the joint stage and the importances.

    parts: input name → node that writes the tokens of one task.
    """
    nodes, start, importances = [], {}, {}
    if recipe.joint.enabled:
        nodes.append(joint_node(recipe, seed, f"joint.s{seed}"))
        start = {"joint": f"joint.s{seed}"}
    for number, ticket in enumerate(tickets):
        name, part = f"alone.{number}.s{seed}", f"part.{number}"
        nodes.append(Node(name, FINETUNE, FinetuneParams.of(recipe, seed), {"prepared": part, **start}, seed=seed))
        if isinstance(ticket, float):
            importance = importance_node(f"importance.{number}.s{seed}", options.as_published, part, name, seed)
            nodes.append(importance)
            importances[f"importance.{number}"] = importance.name
    plain = ShareParams.of(recipe, seed, tickets=[None] * len(tickets))
    pruned = ShareParams.of(recipe, seed, tickets=tickets)
    nodes.append(Node(f"multi_task.s{seed}", SHARE, plain, {**parts, **start}, seed=seed))
    nodes.append(Node(f"tickets.s{seed}", SHARE, pruned, {**parts, **importances, **start}, seed=seed))
    return nodes


def read_files(options: dict[str, object]) -> dict[str, object]:
    """Return the options with each path of a mask file replaced by the file's content. Raises InvalidRequest."""
    tickets = options.get("tickets")
    if not isinstance(tickets, dict):
        return options
    return options | {"tickets": {name: _read_ticket(name, ticket) for name, ticket in tickets.items()}}


def _read_ticket(name: str, ticket: object) -> object:
    if not isinstance(ticket, str) or ticket.startswith("job_"):
        return ticket
    try:
        mask = read_json(Path(ticket))
        return Mask.from_dict(mask if isinstance(mask, dict) else {}).as_dict()
    except (OSError, ValueError, RecursionError, InvalidRequest) as error:
        raise InvalidRequest(
            f"Invalid ticket of '{name}': '{ticket}'. Expected a level, the id of a `prune` job (job_…), or a mask "
            f"file. Cannot read it as a mask file: {error}"
        ) from error


KIND = Kind(
    "share_tickets",
    "several datasets on one encoder, each with its own ticket",
    ShareTicketsOptions,
    plan,
    check=check,
    datasets_option="others",
    pin=pin,
    read_files=read_files,
    has_model=False,
    fields=(
        FormField("others", "Other datasets", "in addition to the one above", "datasets"),
        FormField("level", "Level", "share of heads and blocks to remove", "number"),
        FormField(
            "tickets",
            "Tickets of single datasets",
            "one per line, such as reviews = 0.3; the value is a level, the id of a prune job, or a mask",
            "lines",
        ),
        FormField("as_published", "Compute importance as the authors’ released code does", widget="checkbox"),
    ),
)
