"""Nodes and plans: what depends on what, and where it runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from tlm_core.artifacts import artifact_id
from tlm_core.jobs.spec import Taken
from tlm_core.training.params import VERSIONS, at_rate

# Raised whenever a change of code changes what the stage produces: old artifacts are then not taken again.
STAGE_VERSIONS: Mapping[str, int] = {
    "validate": 2,
    "select": 5,
    **VERSIONS,
    "sizes": 1,
    "subset": 1,
    "bilstm": 4,
    "evaluate_bilstm": 2,
    "curve": 8,
    "tickets_fit": 1,
    "importance": 2,
    "ticket": 3,
    "phases": 6,
    "merge": 3,
    "part": 2,
    "share": 4,
    "shared_report": 5,
}

# In the facts of an artifact that stands for work left out, with the reason: what depends on it is left out too.
DROPPED = "dropped"


class Place(StrEnum):
    """Where a stage runs."""

    COORDINATOR = "coordinator"
    RETRIEVER = "retriever"
    WORKERS = "workers"


@dataclass(frozen=True)
class Node:
    """One stage of a job. inputs: name → node whose artifact it is; fixed: name → digest known beforehand.

    reusable: false where the result depends on the clock or on the memory there was, so that no other job may take it
    from the cache.
    group: nodes of one group run on the same workers in one submission, since starting workers costs more than a
    short stage does. gathers: it runs even where some of its inputs were dropped.
    taken: the artifact of another job that stands for this node, which then never runs.
    """

    name: str
    stage: str
    place: Place
    params: Mapping[str, Any]
    inputs: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, str] = field(default_factory=dict)
    reusable: bool = True
    group: str = "main"
    gathers: bool = False
    taken: Taken | None = None

    def artifact_id(self, digests: Mapping[str, str], job_id: str) -> str:
        """Id of this node's artifact, given the manifest digests of the nodes before it."""
        if self.taken is not None:
            return self.taken.artifact
        inputs = {name: digests[node] for name, node in self.inputs.items()} | dict(self.fixed)
        params = dict(self.params) if self.reusable else {**self.params, "job": job_id}
        return artifact_id(self.stage, STAGE_VERSIONS[self.stage], params, inputs)


def tried(node: Node, rates: Sequence[float]) -> list[Node]:
    """A node that finetunes; with rates to try one such node for each of them, and the choice, which takes its name.

    A try is the same stage as a finetuning at that rate alone, so that either takes the other's artifact.
    """
    if not rates:
        return [node]
    stem, _, seed = node.name.rpartition(".")
    tries = [replace(node, name=f"{stem}.lr{rate:g}.{seed}", params=at_rate(node.params, rate)) for rate in rates]
    inputs = {f"try.{number}": one.name for number, one in enumerate(tries)}
    return [*tries, Node(node.name, "choose", node.place, params={"rates": list(rates)}, inputs=inputs)]


def side_by_side(nodes: Iterable[Node], seeds: Sequence[int], name: str) -> list[Node]:
    """The nodes with a group for each seed, since what hangs on different seeds can run at the same time.

    With one seed they stay as they are: starting workers anew would gain nothing. Seedless nodes stay, too.
    """
    if len(seeds) < 2:
        return list(nodes)
    ends = {f"s{seed}" for seed in seeds}
    found = []
    for node in nodes:
        end = node.name.rsplit(".", 1)[-1]
        own = node.place is Place.WORKERS and end in ends
        found.append(replace(node, group=f"{name}.{end}") if own else node)
    return found


@dataclass(frozen=True)
class Plan:
    """Nodes in an order in which each comes after its inputs; the last one is the job's result.

    report, model: the nodes that leave the job's report and the model on which it predicts.
    """

    nodes: tuple[Node, ...]
    report: str = "evaluate"
    model: str = "export"

    @property
    def final(self) -> Node:
        return self.nodes[-1]

    def node(self, name: str) -> Node:
        return next(node for node in self.nodes if node.name == name)

    def behind(self, name: str) -> list[Node]:
        """All that a node is made from, near and far, in order."""
        needed = set(self.node(name).inputs.values())
        for node in reversed(self.nodes):
            if node.name in needed:
                needed |= set(node.inputs.values())
        return [node for node in self.nodes if node.name in needed]

    def ready(self, done: Mapping[str, Any]) -> list[Node]:
        """Nodes not done whose inputs all are."""
        return [n for n in self.nodes if n.name not in done and all(i in done for i in n.inputs.values())]

    def group(self, name: str) -> list[Node]:
        """The nodes that the workers of one submission run, in order."""
        return [n for n in self.nodes if n.place is Place.WORKERS and n.group == name]

    def startable(self, name: str, done: Mapping[str, Any]) -> bool:
        """Whether everything that the group takes from outside itself is there."""
        members = {node.name for node in self.group(name)}
        outside = {source for node in self.group(name) for source in node.inputs.values()} - members
        return all(source in done for source in outside)
