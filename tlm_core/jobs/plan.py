"""The plan of a job: which stages it needs, on which inputs, and where they run."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from tlm_core.artifacts.hashing import artifact_id
from tlm_core.jobs.spec import JobRecord, ReusedArtifact
from tlm_core.training.stage import Place, Stage, StageParams

SEED_GROUP = "seed.s"  # prefix of the groups of seeds that run at the same time; the seed follows


@dataclass(frozen=True)
class Node:
    """One stage in a plan, with its parameters and inputs."""

    name: str
    stage: Stage
    params: StageParams
    inputs: Mapping[str, str] = field(default_factory=dict)  # name → node that produces the input
    fixed: Mapping[str, str] = field(default_factory=dict)  # name → digest of an input that exists at submission
    seed: int | None = None
    rate: float | None = None  # the learning rate that the node tries
    dataset: int | None = None  # number of the dataset that the node reads
    reusable: bool = True  # False: excluded from the cache, because the result depends on the clock or on memory
    group: str = "main"  # one submission runs all nodes of a group, because a start takes longer than a short stage
    gathers: bool = False  # True: run even if an input is dropped. False: drop this node if an input is dropped
    reused: ReusedArtifact | None = None  # the artifact of another job to use. The node then never runs

    @property
    def place(self) -> Place:
        return self.stage.place

    def artifact_id(self, digests: Mapping[str, str], job_id: str) -> str:
        """Return the id of this node's artifact. If the node is not reusable, the id also depends on `job_id`.

        digests: name of a node → digest of the manifest of its artifact, for all inputs of this node.
        """
        if self.reused is not None:
            return self.reused.artifact
        inputs = {name: digests[node] for name, node in self.inputs.items()} | dict(self.fixed)
        params = self.params.model_dump(mode="json") | ({} if self.reusable else {"job": job_id})
        return artifact_id(self.stage.name, self.stage.version, params, inputs)


@dataclass(frozen=True)
class Plan:
    """The nodes of a job, in an order in which each node follows its inputs. The last node is the job's result.

    report, model: names of the nodes that write the report and the model that serves predictions.
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
        """Return all direct and indirect inputs of a node, in the plan's order."""
        needed = set(self.node(name).inputs.values())
        for node in reversed(self.nodes):
            if node.name in needed:
                needed |= set(node.inputs.values())
        return [node for node in self.nodes if node.name in needed]

    def ready(self, done: Collection[str]) -> list[Node]:
        """Return the nodes that are not in `done`, and whose inputs are all in `done`. done: names of nodes."""
        return [n for n in self.nodes if n.name not in done and all(i in done for i in n.inputs.values())]

    def group(self, name: str) -> list[Node]:
        """Return the nodes of the group `name`, which the workers of one submission run in this order."""
        return [n for n in self.nodes if n.place is Place.WORKERS and n.group == name]

    def side_by_side(self, group: str, done: Collection[str] = ()) -> int:
        """Return how many groups can run at the same time. For the group of a seed, count the unfinished seeds.

        A seed is unfinished if `done` lacks a node of the seed's group. For any other group, return 1.
        """
        if not group.startswith(SEED_GROUP):
            return 1
        left = {node.group for node in self.nodes if node.group.startswith(SEED_GROUP) and node.name not in done}
        return max(1, len(left))

    def start_of(self, node: Node) -> str:
        """Return the key in `Resolved.node_seconds` for the start of a node's workers, such as `start.main`.

        The workers of all seeds start at the same time, so they share one key.
        """
        return f"start.{SEED_GROUP if self.side_by_side(node.group) > 1 else node.group}"

    def twins(self, node: Node) -> list[Node]:
        """Return the nodes at the position of `node` in the groups of all seeds. In another group, return [node]."""
        if not node.group.startswith(SEED_GROUP):
            return [node]
        place = self.group(node.group).index(node)
        groups = dict.fromkeys(other.group for other in self.nodes if other.group.startswith(SEED_GROUP))
        return [self.group(group)[place] for group in groups]

    def startable(self, name: str, done: Collection[str]) -> bool:
        """Return whether all inputs that the group `name` needs from nodes outside of the group are done."""
        members = {node.name for node in self.group(name)}
        outside = {source for node in self.group(name) for source in node.inputs.values()} - members
        return all(source in done for source in outside)


def plan_of(job: JobRecord) -> Plan:
    """Return the plan of a job. The plan depends on the job's record alone."""
    plan = job.spec.definition.plan(job.plan_inputs)
    reused, excluded = job.resolved.reused, job.excluded_from_cache
    nodes = [
        replace(node, reusable=node.reusable and node.name not in excluded, reused=reused.get(node.name))
        for node in plan.nodes
    ]
    return replace(plan, nodes=tuple(nodes))
