"""Functions that create nodes for the plans of several kinds of jobs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import product

from tlm_core import stages
from tlm_core.compression.masks import Mask
from tlm_core.compression.params import CheckEncoderParams, ImportanceParams
from tlm_core.errors import InvalidRecipe
from tlm_core.jobs.plan import SEED_GROUP, Node
from tlm_core.jobs.spec import KindOptions, PlanInputs
from tlm_core.linear.params import BaselineParams, SelfTrainParams
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
from tlm_core.training.recipe import OWN_STARTS, Finetune, Recipe
from tlm_core.training.stage import Place


def validate_nodes(inputs: PlanInputs[KindOptions]) -> list[Node]:
    """Return a node of the stage `validate` for each dataset of the job. The node writes the task of the dataset."""
    return [
        Node(
            f"validate.{number}" if number else "validate",
            stages.VALIDATE,
            ValidateParams.model_validate({"options": dataset.options}),
            fixed={"dataset": dataset.ref.digest},
            dataset=number,
        )
        for number, dataset in enumerate(inputs.datasets)
    ]


def baseline_node(group: str, task: str = "validate", name: str = "baseline") -> Node:
    """Return the node that fits the linear model. task: name of the node that writes the task."""
    return Node(name, stages.BASELINE, BaselineParams(), {"task": task}, group=group)


def select_node(
    inputs: PlanInputs[KindOptions], task: str, name: str = "select", seed: int | None = None
) -> Node | None:
    """Return the node that selects passages for the task of the node `task`, or None if the job uses no passages."""
    selection = inputs.recipe.selection
    if selection.definition.source == "dataset":
        fixed = {}
    elif inputs.corpus is not None and selection.needs_corpus:
        fixed = {"corpus": inputs.corpus}
    else:
        return None
    return Node(name, stages.SELECT, SelectParams(selection=selection), inputs={"task": task}, fixed=fixed, seed=seed)


def prepare_node(
    recipe: Recipe,
    task: str,
    select: Node | None,
    name: str = "prepare",
    seed: int | None = None,
    *,
    labeled: bool = False,
) -> Node:
    """Return the node that trains the tokenizer and tokenizes all texts. labeled: whether `self_train` is an input."""
    inputs = {"task": task} | ({"selection": select.name} if select else {})
    inputs |= {"self_train": "self_train"} if labeled else {}
    return Node(name, stages.PREPARE, PrepareParams.of(recipe), inputs=inputs, seed=seed)


def joint_node(recipe: Recipe, seed: int, name: str, prepared: str = "prepare", baseline: str | None = None) -> Node:
    """Return the node of the joint stage for one seed. A budget in seconds excludes the node from the cache.

    prepared: name of the node that writes the tokens. baseline: name of the node that fits the linear model. Raises
    InvalidRecipe if `baseline` is None and the recipe sets `stop_if_behind`.
    """
    inputs, reusable = {"prepared": prepared}, recipe.joint.budget.seconds is None
    if recipe.joint.stop_if_behind is not None:
        if baseline is None:
            raise InvalidRecipe("This kind of job does not support joint.stop_if_behind. Remove joint.stop_if_behind.")
        inputs["baseline"] = baseline
    return Node(name, stages.JOINT, JointParams.of(recipe, seed), inputs, seed=seed, reusable=reusable)


def finetune_nodes(recipe: Recipe, seed: int, name: str, inputs: Mapping[str, str]) -> list[Node]:
    """Return the nodes that `with_tries` creates for one seed. The last node is `name`. inputs: input name → node."""
    node = Node(name, stages.FINETUNE, FinetuneParams.of(recipe, seed), inputs, seed=seed)
    return with_tries(node, recipe.finetune)


def with_tries(node: Node, settings: Finetune) -> list[Node]:
    """Return a node for each pair of learning rate and class weights in `settings`, and a last node.

    The last node has the name of `node`, and chooses the best try. Without values to try, return [node]. A job that
    finetunes once with the values of a try reuses the artifact of the try, because both artifacts have the same id.
    """
    if not settings.has_tries:
        return [node]
    assert isinstance(node.params, TuneParams)
    finetune, tries = node.params.finetune, list[Node]()
    values: list[dict[str, float | str]] = []  # the tried values of each try, for the report
    all_weights: tuple[str | None, ...] = ("none", "balanced") if settings.class_weights == "auto" else (None,)
    for rate, weights in product(settings.rates or (None,), all_weights):
        name = node.name if rate is None else f"{node.name}.lr{rate:g}"
        values.append({"lr": finetune.optimizer.lr if rate is None else rate})
        if weights is not None:
            name += f".{weights}"
            values[-1]["class_weights"] = weights
        params = node.params.model_copy(update={"finetune": finetune.with_values(values[-1])})
        tries.append(replace(node, name=name, params=params, rate=rate))
    inputs = {f"try.{number}": attempt.name for number, attempt in enumerate(tries)}
    return [*tries, Node(node.name, stages.CHOOSE, ChooseParams(tries=tuple(values)), inputs, seed=node.seed)]


def refit_linear_node(inputs: Mapping[str, str], group: str) -> Node:
    """Return the node that fits the linear models again, on train and validation.

    inputs: input name → node. The new node uses only `task`, `baseline`, `self_train` and `selection`.
    """
    needed = {name: node for name, node in inputs.items() if name in ("task", "baseline", "self_train", "selection")}
    return Node("refit_linear", stages.REFIT_LINEAR, BaselineParams(), needed, group=group)


def train_nodes(inputs: PlanInputs[KindOptions], *, ensemble: bool = False, refit: bool = False) -> list[Node]:
    """Return the nodes of a `train` job up to `evaluate`. ensemble: see `SeedsParams`. refit: see `Recipe`.

    validate → baseline; validate → select → self_train → prepare → (joint → finetune → refit, for each seed);
    baseline, self_train → refit_linear; all of them → evaluate.
    If the job selects passages, the linear model has its own group, so that workers fit it during the selection.
    Several seeds train side by side, because a small model gains little from more cores.
    """
    recipe, seeds = inputs.recipe, inputs.seeds
    select = select_node(inputs, "validate")
    nodes = [*validate_nodes(inputs), baseline_node("baseline" if select else "main"), *([select] if select else [])]
    gathered = {"prepared": "prepare", "task": "validate", "baseline": "baseline"}
    labeled = bool(select and recipe.self_training.amounts)
    if select and labeled:
        learned = {"task": "validate", "baseline": "baseline", "selection": select.name}
        amounts = SelfTrainParams(amounts=recipe.self_training.amounts)
        nodes.append(Node("self_train", stages.SELF_TRAIN, amounts, learned))
        gathered["self_train"] = "self_train"
    nodes.append(prepare_node(recipe, "validate", select, labeled=labeled))
    trained: list[Node] = []
    for seed in seeds:
        start = {"prepared": "prepare"}
        if recipe.joint.enabled:
            trained.append(joint_node(recipe, seed, f"joint.s{seed}", baseline="baseline"))
            start["joint"] = f"joint.s{seed}"
        trained += finetune_nodes(recipe, seed, f"finetune.s{seed}", start)
        gathered[f"finetune.s{seed}"] = f"finetune.s{seed}"
        if refit:
            again, tuned = FinetuneParams.of(recipe, seed), {**start, "finetune": f"finetune.s{seed}"}
            trained.append(Node(f"refit.s{seed}", stages.REFIT, again, tuned, seed=seed))
            gathered[f"refit.s{seed}"] = f"refit.s{seed}"
    group, linear = gather_group(seeds), []
    if refit:
        selected = {"selection": select.name} if select and labeled else {}
        linear = [refit_linear_node({**gathered, **selected}, group)]
        gathered["refit_linear"] = "refit_linear"
    params = SeedsParams(seeds=seeds, ensemble=ensemble and len(seeds) > 1)
    evaluate = Node("evaluate", stages.EVALUATE, params, gathered, group=group)
    return [*nodes, *group_by_seed(trained, seeds), *linear, evaluate]


def group_by_seed(nodes: Iterable[Node], seeds: Sequence[int]) -> list[Node]:
    """Return copies of the nodes. The worker nodes of each seed form a group, so that the seeds run at the same time.

    With one seed, no group changes, because another submission would only add the time of its start.
    """
    if len(seeds) < 2:
        return list(nodes)
    grouped = []
    for node in nodes:
        of_seed = node.seed is not None and node.place is Place.WORKERS
        grouped.append(replace(node, group=f"{SEED_GROUP}{node.seed}") if of_seed else node)
    return grouped


def gather_group(seeds: Sequence[int]) -> str:
    """Return the name of the group for nodes that need the results of all seeds: `gather`, or `main` for one seed."""
    return "gather" if len(seeds) > 1 else "main"


def importance_node(name: str, as_published: bool, prepared: str, finetune: str, seed: int) -> Node:
    """Return the node that measures the importance of heads and blocks in a finetuned model.

    as_published: compute importance as the code of the paper does. prepared, finetune: names of the input nodes.
    """
    params = ImportanceParams(as_published=as_published)
    return Node(name, stages.IMPORTANCE, params, {"prepared": prepared, "finetune": finetune}, seed=seed)


def check_encoder(
    inputs: PlanInputs[KindOptions], recipe: Recipe, levels: Sequence[float] = (), masks: Sequence[Mask] = ()
) -> Node | None:
    """Return the node that checks that a published encoder is supported, and that `levels` and `masks` fit the encoder.

    Return None for an encoder trained from scratch, because the gateway checks this encoder at submission.
    """
    if recipe.model.init in OWN_STARTS:
        return None
    params = CheckEncoderParams(init=recipe.model.init, levels=tuple(levels), masks=tuple(masks))
    # Jobs on different datasets must not share the artifact, because deleting a dataset deletes its jobs' artifacts.
    return Node("check_encoder", stages.CHECK_ENCODER, params, fixed={"dataset": inputs.datasets[0].ref.digest})


def before_training(nodes: Sequence[Node], check: Node | None) -> list[Node]:
    """Return `nodes` with `check` before the first node that runs on workers. If `check` is None, add no node."""
    first = next(number for number, node in enumerate(nodes) if node.place is Place.WORKERS)
    return [*nodes[:first], *([check] if check else []), *nodes[first:]]
