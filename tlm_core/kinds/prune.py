"""Kind `prune`: tickets of a finetuned model at several sparsity levels (Super Tickets, arXiv 2105.12002)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field, field_validator

from tlm_core.compression.masks import Mask, Which, removals
from tlm_core.compression.params import CheckEncoderParams, ImportanceParams, PhasesParams, TicketParams
from tlm_core.jobs.nodes import Node, Plan, PlanInputs, gather_group, group_by_seed, with_rates
from tlm_core.kinds.kind import FormField, Kind, KindOptions
from tlm_core.kinds.train import chain
from tlm_core.stages import Place, worker
from tlm_core.training.params import CardRecipe
from tlm_core.training.recipe import OWN_STARTS, Recipe

CHECK_ENCODER = worker("check_encoder", "tlm_core.compression.stages:check_encoder", 1, CheckEncoderParams)
IMPORTANCE = worker("importance", "tlm_core.compression.stages:importance", 2, ImportanceParams)
TICKET = worker("ticket", "tlm_core.compression.stages:ticket", 3, TicketParams)
PHASES = worker("phases", "tlm_core.compression.phases:phases", 6, PhasesParams)


class PruneOptions(KindOptions):
    """Without `job`, the kind prunes the model of the recipe and trains it first, unless the cache has it."""

    job: str | None = Field(
        None,
        pattern=r"^job_",
        max_length=100,
        description="a finished `train` or `prune` job; its dense model is pruned with its dataset, corpus, recipe and "
        "seeds",
    )
    levels: tuple[float, ...] = Field(
        (0.15, 0.3, 0.45, 0.6), min_length=1, max_length=30, description="shares of heads and blocks to remove"
    )
    tickets: tuple[Which, ...] = Field(("winning", "random", "losing"), min_length=1)
    as_published: bool = Field(False, description="compute importance as the authors' released code does")

    @field_validator("levels")
    @classmethod
    def _check_levels(cls, levels: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0 < level < 1 for level in levels):
            raise ValueError("A level must be above 0 and below 1. The dense model is always included.")
        if len(set(levels)) < len(levels):
            raise ValueError("A level occurs twice.")
        return levels

    @field_validator("tickets")
    @classmethod
    def _check_tickets(cls, tickets: tuple[Which, ...]) -> tuple[Which, ...]:
        if len(set(tickets)) < len(tickets):
            raise ValueError("A ticket occurs twice.")
        if "winning" not in tickets:
            raise ValueError("The tickets must include 'winning', because the super ticket is one of them.")
        return tickets


def check(options: PruneOptions, recipe: Recipe, _: tuple[str, ...]) -> None:
    """Raises InvalidRequest for a level that would leave a layer without heads."""
    if recipe.model.init in OWN_STARTS:  # `check_encoder` checks published encoders, whose shape is unknown here
        for level in options.levels:
            removals(level, recipe.model.layers, recipe.model.heads)


def plan(inputs: PlanInputs[PruneOptions]) -> Plan:
    """The dense model as `train` trains it, its importance, a ticket for each kind, level and seed, the choice."""
    options, recipe, seeds = inputs.options, inputs.recipe, inputs.seeds
    nodes = before_training(chain(inputs), check_encoder(inputs, recipe, options.levels))
    gathered = {"prepared": "prepare", "task": "validate", "evaluate": "evaluate"}
    gathered |= {f"finetune.s{seed}": f"finetune.s{seed}" for seed in seeds}
    tickets = [importance_node(f"importance.s{seed}", options.as_published, "prepare", f"finetune.s{seed}", seed)
               for seed in seeds]  # fmt: skip
    for which in options.tickets:
        for level in options.levels:
            for seed in seeds:
                name = f"ticket.{which}.l{level:g}.s{seed}"
                params = TicketParams.of(recipe, seed, which=which, level=level)
                start = {"prepared": "prepare", "importance": f"importance.s{seed}"}
                if recipe.joint.enabled:
                    start["joint"] = f"joint.s{seed}"
                tickets += with_rates(Node(name, TICKET, params, start, seed=seed), recipe)
                gathered[name] = name
    phases = PhasesParams(tickets=options.tickets, levels=options.levels, seeds=seeds, recipe=CardRecipe.of(recipe))
    last = Node("phases", PHASES, phases, gathered, group=gather_group(seeds))
    return Plan((*nodes, *group_by_seed(tickets, seeds, "tickets"), last), report="phases", model="phases")


def importance_node(name: str, as_published: bool, prepared: str, finetune: str, seed: int) -> Node:
    """The importance of heads and blocks in a finetuned model."""
    params = ImportanceParams(as_published=as_published)
    return Node(name, IMPORTANCE, params, {"prepared": prepared, "finetune": finetune}, seed=seed)


def check_encoder(
    inputs: PlanInputs[Any], recipe: Recipe, levels: Sequence[float] = (), masks: Sequence[Mask] = ()
) -> Node | None:
    """A check of a published encoder and of the tickets against it; None if the gateway knows the encoder's shape."""
    if recipe.model.init in OWN_STARTS:
        return None
    params = CheckEncoderParams(init=recipe.model.init, levels=levels, masks=masks)
    # It reads no data, but only jobs on the same dataset may share an artifact: removing the last of them deletes it.
    return Node("check_encoder", CHECK_ENCODER, params, fixed={"dataset": inputs.datasets[0].ref.digest})


def before_training(nodes: Sequence[Node], check: Node | None) -> list[Node]:
    """Insert the check before the first node that runs on workers."""
    first = next(number for number, node in enumerate(nodes) if node.place is Place.WORKERS)
    return [*nodes[:first], *([check] if check else []), *nodes[first:]]


AS_PUBLISHED = FormField("as_published", "Compute importance as the authors’ released code does", widget="checkbox")

KIND = Kind(
    "prune",
    "remove attention heads and feed-forward blocks, and measure the effect",
    PruneOptions,
    plan,
    stages=(CHECK_ENCODER, IMPORTANCE, TICKET, PHASES),
    check=check,
    source_job=lambda options: options.job,
    extends_train=True,
    fields=(
        FormField(
            "job",
            "Job",
            "id of a finished job whose model is pruned; its data, recipe and seeds replace those of this form",
        ),
        FormField("levels", "Levels", "shares of heads and blocks to remove", "numbers"),
        FormField(
            "tickets",
            "Tickets",
            widget="choices",
            required="winning",
            choices={
                "winning": "required; removes the least important parts",
                "random": "removes random parts",
                "losing": "removes the most important parts",
            },
        ),
        AS_PUBLISHED,
    ),
)
