"""Kind `share_tickets`: several tasks on one encoder, each with a ticket of its own (arXiv 2105.12002, section 4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tlm_core.compression.masks import Mask
from tlm_core.compression.params import MergeParams, PartParams, ShareParams
from tlm_core.jobs.nodes import (
    Node,
    Plan,
    PlanInputs,
    gather_group,
    group_by_seed,
    joint_node,
    prepare_node,
    select_node,
    validate_nodes,
)
from tlm_core.jobs.options import ShareTickets
from tlm_core.kinds.prune import before_training, check_encoder, importance_node
from tlm_core.stages import FINETUNE, Place, Stage, worker
from tlm_core.training.params import FinetuneParams, SeedsParams
from tlm_core.training.recipe import Recipe

MERGE = Stage("merge", Place.COORDINATOR, "tlm_core.tasks.merge:merge_stage", 3, MergeParams)
PART = worker("part", "tlm_core.compression.part:part", 2, PartParams)
SHARE = worker("share", "tlm_core.compression.sharing:share", 4, ShareParams)
SHARED_REPORT = worker("shared_report", "tlm_core.compression.shared_report:shared_report", 5, SeedsParams)


def plan(inputs: PlanInputs[ShareTickets]) -> Plan:
    """Merge the tasks, train each alone, then all together without tickets and with tickets."""
    names, recipe, seeds = inputs.names, inputs.recipe, inputs.seeds
    # The joint stage trains the labels of all tasks, so each task starts finetuning with a head of its own.
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
    levels = [ticket for ticket in tickets if isinstance(ticket, float)]
    masks = [ticket for ticket in tickets if isinstance(ticket, Mask)]
    nodes = before_training(nodes, check_encoder(inputs, recipe, levels, masks))
    trained: list[Node] = []
    for seed in seeds:
        trained += _one_seed(recipe, inputs.options, tickets, seed, parts)
    gathered = {"merged": "merge", **tasks, **parts}
    gathered |= {node.name: node.name for node in trained if node.stage in (FINETUNE, SHARE)}
    last = Node("report", SHARED_REPORT, SeedsParams(seeds=seeds), gathered, group=gather_group(seeds))
    return Plan((*nodes, *group_by_seed(trained, seeds, "seed"), last), report="report", model="export")


def _one_seed(
    recipe: Recipe, options: ShareTickets, tickets: Sequence[float | Mask], seed: int, parts: Mapping[str, str]
) -> list[Node]:
    """The joint stage, each task alone with its importance, all tasks together without and with tickets."""
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
