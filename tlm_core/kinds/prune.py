"""Kind `prune`: tickets of a finetuned model at several sparsity levels (Super Tickets, arXiv 2105.12002)."""

from __future__ import annotations

from itertools import product

from pydantic import Field, field_validator

from tlm_core.compression.masks import Which, removals
from tlm_core.compression.params import PhasesParams, TicketParams, ticket_name
from tlm_core.jobs.nodes import (
    before_training,
    check_encoder,
    gather_group,
    group_by_seed,
    importance_node,
    train_nodes,
    with_tries,
)
from tlm_core.jobs.plan import Node, Plan
from tlm_core.jobs.spec import KindOptions, PlanInputs
from tlm_core.kinds.kind import FormField, Kind
from tlm_core.training.params import CardRecipe
from tlm_core.training.recipe import OWN_STARTS, Recipe
from tlm_core.training.stage import Stage

TICKET = Stage("ticket", "tlm_core.compression.ticket_stages:ticket", 4, TicketParams, parallel=True)
PHASES = Stage("phases", "tlm_core.compression.phases:phases", 19, PhasesParams)


class PruneOptions(KindOptions):
    """What to prune, and how. Without `job`, the plan first trains the recipe's model, or reuses it from the cache."""

    job: str | None = Field(
        None,
        pattern=r"^job_",
        max_length=100,
        description="id of a finished `train` or `prune` job, which provides the dense model, dataset, corpus, recipe "
        "and seeds",
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
            raise ValueError("A level must be above 0 and below 1. Omit 0: the job always evaluates the dense model.")
        names = [f"{level:g}" for level in levels]  # stage names contain this form
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"Level {twice[0]} occurs twice in 'levels', rounded to six digits. Name each level once.")
        return levels

    @field_validator("tickets")
    @classmethod
    def _check_tickets(cls, tickets: tuple[Which, ...]) -> tuple[Which, ...]:
        if twice := [ticket for ticket in tickets if tickets.count(ticket) > 1]:
            raise ValueError(f"Ticket '{twice[0]}' occurs twice in 'tickets'. Name each ticket once.")
        if "winning" not in tickets:
            raise ValueError("'tickets' must include 'winning', from which the super ticket is chosen. Add 'winning'.")
        return tickets


def check(options: PruneOptions, recipe: Recipe, _: tuple[str, ...]) -> None:
    """Raise InvalidRequest for a level that would leave a layer without heads."""
    if recipe.model.init in OWN_STARTS:  # `check_encoder` checks published encoders, whose shape is unknown here
        for level in options.levels:
            removals(level, recipe.model.layers, recipe.model.heads)


def plan(inputs: PlanInputs[PruneOptions]) -> Plan:
    """Return a plan that trains the dense model, measures importance, finetunes all tickets, and compares them."""
    options, recipe, seeds = inputs.options, inputs.recipe, inputs.seeds
    nodes = before_training(train_nodes(inputs), check_encoder(inputs, recipe, options.levels))
    gathered = {"prepared": "prepare", "task": "validate", "baseline": "baseline", "evaluate": "evaluate"}
    gathered |= {f"finetune.s{seed}": f"finetune.s{seed}" for seed in seeds}
    tickets = [
        importance_node(f"importance.s{seed}", options.as_published, "prepare", f"finetune.s{seed}", seed)
        for seed in seeds
    ]
    for which, level, seed in product(options.tickets, options.levels, seeds):
        name = ticket_name(which, level, seed)
        params = TicketParams.of(recipe, seed, which=which, level=level)
        start = {"prepared": "prepare", "importance": f"importance.s{seed}"}
        if recipe.joint.enabled:
            start["joint"] = f"joint.s{seed}"
        tickets += with_tries(Node(name, TICKET, params, start, seed=seed), recipe.finetune)
        gathered[name] = name
    phases = PhasesParams(tickets=options.tickets, levels=options.levels, seeds=seeds, recipe=CardRecipe.of(recipe))
    last = Node("phases", PHASES, phases, gathered, group=gather_group(seeds))
    return Plan((*nodes, *group_by_seed(tickets, seeds), last), report="phases", model="phases")


KIND = Kind(
    "prune",
    "remove attention heads and feed-forward blocks, and measure the effect",
    PruneOptions,
    plan,
    check=check,
    source_option="job",
    extends_train=True,
    fields=(
        FormField(
            "job",
            "Job",
            "optional: id of a finished job to prune; its data, scale, recipe and seeds replace those of this form",
            "job",
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
        FormField("as_published", "Compute importance as the authors’ released code does", widget="checkbox"),
    ),
)
