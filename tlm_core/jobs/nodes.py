"""Plans: the nodes of a job, what each depends on, and the nodes that several kinds of job share."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict

from tlm_core.artifacts import ManifestRef, artifact_id, digest_of
from tlm_core.stages import CHOOSE, EVALUATE, FINETUNE, JOINT, PREPARE, SELECT, VALIDATE, Place, Stage
from tlm_core.tasks.options import DatasetOptions
from tlm_core.training.params import (
    ChooseParams,
    FinetuneParams,
    JointParams,
    PrepareParams,
    SeedsParams,
    SelectParams,
    TuneParams,
    ValidateParams,
)
from tlm_core.training.recipe import Recipe
from tlm_core.training.stage import StageParams

Options = TypeVar("Options")


class DatasetInput(BaseModel):
    """A dataset of a job. options: how to read it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    ref: ManifestRef
    options: dict[str, Any] = {}

    @property
    def content(self) -> str:
        """Digest of what determines the texts and labels: the files and how to read them, without the task's name."""
        return digest_of([self.ref.digest, {key: value for key, value in self.options.items() if key != "name"}])


class ReusedArtifact(BaseModel):
    """The artifact of another job that replaces a node: its id and where it is stored."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    artifact: str
    ref: ManifestRef


@dataclass(frozen=True)
class PlanInputs(Generic[Options]):
    """The inputs of a kind's plan.

    names: the datasets as the request names them, in the order of `datasets`. corpus: "NAME@VERSION" or None.
    """

    options: Options
    recipe: Recipe
    seeds: tuple[int, ...]
    datasets: tuple[DatasetInput, ...]
    names: tuple[str, ...]
    corpus: str | None


@dataclass(frozen=True)
class Node:
    """One stage of a job.

    inputs: name → node that produces it. fixed: name → digest of an input that exists before the job starts.
    seed, rate: the seed and the finetuning rate that the node is for, if it is for one.
    reusable: False if the result depends on the clock or on memory, so the cache must not offer it to other jobs.
    group: workers run the nodes of one group in one submission, because a start takes longer than a short stage.
    gathers: the node runs even if some of its inputs were dropped.
    reused: the artifact of another job that replaces this node; the node then never runs.
    """

    name: str
    stage: Stage
    params: StageParams
    inputs: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, str] = field(default_factory=dict)
    seed: int | None = None
    rate: float | None = None
    reusable: bool = True
    group: str = "main"
    gathers: bool = False
    reused: ReusedArtifact | None = None

    @property
    def place(self) -> Place:
        return self.stage.place

    def artifact_id(self, digests: Mapping[str, str], job_id: str) -> str:
        """Return the id of this node's artifact. digests: node → manifest digest, at least of this node's inputs."""
        if self.reused is not None:
            return self.reused.artifact
        inputs = {name: digests[node] for name, node in self.inputs.items()} | dict(self.fixed)
        params = self.params.model_dump(mode="json") | ({} if self.reusable else {"job": job_id})
        return artifact_id(self.stage.name, self.stage.version, params, inputs)


@dataclass(frozen=True)
class Plan:
    """The nodes of a job, each after its inputs. The last node is the job's result.

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
        """Return the nodes that are not done and whose inputs all are."""
        return [n for n in self.nodes if n.name not in done and all(i in done for i in n.inputs.values())]

    def group(self, name: str) -> list[Node]:
        """Return the nodes that the workers of one submission run, in order."""
        return [n for n in self.nodes if n.place is Place.WORKERS and n.group == name]

    def startable(self, name: str, done: Collection[str]) -> bool:
        """Return whether all inputs that the group needs from other groups are done."""
        members = {node.name for node in self.group(name)}
        outside = {source for node in self.group(name) for source in node.inputs.values()} - members
        return all(source in done for source in outside)


# --- nodes that several kinds share -----------------------------------------------------------------------------------


def validate_nodes(inputs: PlanInputs[Any]) -> list[Node]:
    """One node for each dataset of the job: it turns the dataset into a task."""
    return [
        Node(
            f"validate.{number}" if number else "validate",
            VALIDATE,
            ValidateParams(options=DatasetOptions(**dataset.options)),
            fixed={"dataset": dataset.ref.digest},
        )
        for number, dataset in enumerate(inputs.datasets)
    ]


def select_node(inputs: PlanInputs[Any], task: str, name: str = "select", seed: int | None = None) -> Node | None:
    """The node that selects passages for a task, or None if the job trains on the task alone."""
    selection = inputs.recipe.selection
    if selection.definition.source == "dataset":
        fixed = {}
    elif inputs.corpus is not None and selection.needs_corpus:
        fixed = {"corpus": inputs.corpus}
    else:
        return None
    return Node(name, SELECT, SelectParams(selection=selection), inputs={"task": task}, fixed=fixed, seed=seed)


def prepare_node(
    recipe: Recipe, task: str, select: Node | None, name: str = "prepare", seed: int | None = None
) -> Node:
    """The node that trains the tokenizer and tokenizes all texts."""
    inputs = {"task": task} | ({"selection": select.name} if select else {})
    return Node(name, PREPARE, PrepareParams.of(recipe), inputs=inputs, seed=seed)


def joint_node(recipe: Recipe, seed: int, name: str, prepared: str = "prepare") -> Node:
    """The joint stage of one seed. A wall-clock budget makes its result irreproducible, so the cache excludes it."""
    reusable = recipe.joint.budget.seconds is None
    return Node(name, JOINT, JointParams.of(recipe, seed), {"prepared": prepared}, seed=seed, reusable=reusable)


def finetune_nodes(recipe: Recipe, seed: int, name: str, inputs: Mapping[str, str]) -> list[Node]:
    """Finetuning of one seed; see `with_rates`."""
    return with_rates(Node(name, FINETUNE, FinetuneParams.of(recipe, seed), inputs, seed=seed), recipe)


def with_rates(node: Node, recipe: Recipe) -> list[Node]:
    """Return one node for each of the recipe's rates and a last node that chooses among them; or the node itself.

    A node for one rate equals finetuning at that rate alone, so either reuses the other's artifact.
    """
    rates = recipe.finetune.rates
    if not rates:
        return [node]
    assert isinstance(node.params, TuneParams)
    tries = []
    for rate in rates:
        finetune = node.params.finetune
        optimizer = finetune.optimizer.model_copy(update={"lr": rate})
        finetune = finetune.model_copy(update={"optimizer": optimizer})
        params = node.params.model_copy(update={"finetune": finetune})
        tries.append(replace(node, name=f"{node.name}.lr{rate:g}", params=params, rate=rate))
    inputs = {f"try.{number}": attempt.name for number, attempt in enumerate(tries)}
    return [*tries, Node(node.name, CHOOSE, ChooseParams(rates=rates), inputs, seed=node.seed)]


def train_nodes(inputs: PlanInputs[Any]) -> list[Node]:
    """The nodes of `train` up to its test: validate → select → prepare → joint, finetune (each seed) → evaluate."""
    recipe, seeds = inputs.recipe, inputs.seeds
    select = select_node(inputs, "validate")
    nodes = [*validate_nodes(inputs), *([select] if select else []), prepare_node(recipe, "validate", select)]
    gathered = {"prepared": "prepare", "task": "validate"}
    for seed in seeds:
        start = {}
        if recipe.joint.enabled:
            nodes.append(joint_node(recipe, seed, f"joint.s{seed}"))
            start = {"joint": f"joint.s{seed}"}
        nodes += finetune_nodes(recipe, seed, f"finetune.s{seed}", {"prepared": "prepare", **start})
        gathered[f"finetune.s{seed}"] = f"finetune.s{seed}"
    return [*nodes, Node("evaluate", EVALUATE, SeedsParams(seeds=seeds), gathered)]


def group_by_seed(nodes: Iterable[Node], seeds: Sequence[int], name: str) -> list[Node]:
    """Put the worker nodes of each seed into a group of their own, so that seeds run at the same time.

    With one seed the nodes stay in their group: another submission would only cost the time of a start.
    """
    if len(seeds) < 2:
        return list(nodes)
    return [
        replace(node, group=f"{name}.s{node.seed}") if node.place is Place.WORKERS and node.seed is not None else node
        for node in nodes
    ]


def gather_group(seeds: Sequence[int]) -> str:
    """The group of a last node that waits for the groups of all seeds."""
    return "gather" if len(seeds) > 1 else "main"
