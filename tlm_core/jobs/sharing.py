"""The plan of ticket sharing: several data sets become one start, and the start three systems to compare."""

from __future__ import annotations

from typing import Any

from tlm_core.jobs.nodes import Node, Place, Plan, side_by_side
from tlm_core.jobs.options import ShareTickets
from tlm_core.jobs.spec import JobRecord
from tlm_core.jobs.studies import before_training, gather, tickets_fit, validate_node
from tlm_core.training.params import reproducible, stage_params


def share_tickets(job: JobRecord) -> Plan:
    """Merge the tasks for tokens and a start, find a ticket for each, train them alone, together, and with tickets."""
    options, recipe, seeds = job.spec.share_tickets, job.resolved.recipe, job.spec.seeds
    assert options is not None, "a spec of this kind has its options"
    # The joint stage has learnt the labels of all tasks; each task begins with a head of its own.
    recipe = recipe.model_copy(update={"finetune": recipe.finetune.model_copy(update={"reset_head": True})})
    names = [job.spec.dataset, *options.others]
    tickets = [options.ticket(name, job.resolved.tickets) for name in names]
    nodes = [validate_node(job, number) for number in range(len(names))]
    tasks = {f"task.{number}": node.name for number, node in enumerate(nodes)}
    nodes.append(Node("merge", "merge", Place.COORDINATOR, params={"names": names}, inputs=tasks))
    prepare_inputs = {"task": "merge"}
    resolved = job.resolved
    if resolved.corpus_name is not None and recipe.selection.needs_corpus:
        params = {"selection": recipe.selection.model_dump(mode="json"), "seed": 0}
        fixed = {"corpus": f"{resolved.corpus_name}@{resolved.corpus_version}"}
        nodes.append(Node("select", "select", Place.RETRIEVER, params=params, inputs={"task": "merge"}, fixed=fixed))
        prepare_inputs["selection"] = "select"
    prepare = stage_params("prepare", recipe)
    nodes.append(Node("prepare", "prepare", Place.WORKERS, params=prepare, inputs=prepare_inputs))
    for number in range(len(names)):
        inputs = {"prepared": "prepare", "task": "merge"}
        nodes.append(Node(f"part.{number}", "part", Place.WORKERS, params={"number": number}, inputs=inputs))
    gathered = {"merged": "merge", **tasks, **{f"prepared.{n}": f"part.{n}" for n in range(len(names))}}
    levels = [ticket["level"] for ticket in tickets if "level" in ticket]
    masks = [ticket["mask"] for ticket in tickets if "mask" in ticket]
    nodes = before_training(nodes, tickets_fit(job, recipe, levels, masks))
    fan: list[Node] = []
    for seed in seeds:
        fan += _one_seed(job, options, tickets, seed, stage_params("finetune", recipe, seed), gathered)
    nodes += side_by_side(fan, seeds, "seed")
    params = {"seeds": list(seeds)}
    last = Node("report", "shared_report", Place.WORKERS, params=params, inputs=gathered, group=gather(seeds))
    return Plan((*nodes, last), report="report", model="export")


def _one_seed(
    job: JobRecord,
    options: ShareTickets,
    tickets: list[dict[str, Any]],
    seed: int,
    finetune: dict[str, Any],
    gathered: dict[str, str],
) -> list[Node]:
    """The joint stage, each task alone with its importance, all together without and with tickets."""
    recipe, found, start = job.resolved.recipe, [], {}
    if recipe.joint.enabled:
        params, reusable = stage_params("joint", recipe, seed), reproducible("joint", recipe)
        inputs = {"prepared": "prepare"}
        found.append(Node(f"joint.s{seed}", "joint", Place.WORKERS, params=params, inputs=inputs, reusable=reusable))
        start = {"joint": f"joint.s{seed}"}
    scored = {}
    for number, ticket in enumerate(tickets):
        name = f"alone.{number}.s{seed}"
        inputs = {"prepared": f"part.{number}", **start}
        found.append(Node(name, "finetune", Place.WORKERS, params=finetune, inputs=inputs))
        gathered[name] = name
        if "level" in ticket:
            scored[f"importance.{number}"] = f"importance.{number}.s{seed}"
            params = {"as_published": options.as_published}
            inputs = {"prepared": f"part.{number}", "finetune": name}
            node = Node(f"importance.{number}.s{seed}", "importance", Place.WORKERS, params=params, inputs=inputs)
            found.append(node)
    parts = {f"prepared.{number}": f"part.{number}" for number in range(len(tickets))}
    for name, given, more in (("multi_task", [None] * len(tickets), {}), ("tickets", tickets, scored)):
        params = {**finetune, "tickets": given}
        inputs = {**parts, **more, **start}
        found.append(Node(f"{name}.s{seed}", "share", Place.WORKERS, params=params, inputs=inputs))
        gathered[f"{name}.s{seed}"] = f"{name}.s{seed}"
    return found
