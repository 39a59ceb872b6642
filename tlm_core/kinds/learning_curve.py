"""Kind `learning_curve`: how many labels a BiLSTM needs to come close to an encoder (arXiv 2006.08671)."""

from __future__ import annotations

from dataclasses import replace

from tlm_core.jobs.nodes import (
    Node,
    Plan,
    PlanInputs,
    finetune_nodes,
    gather_group,
    group_by_seed,
    joint_node,
    prepare_node,
    select_node,
    validate_nodes,
)
from tlm_core.jobs.options import LearningCurve
from tlm_core.kinds.prune import check_encoder
from tlm_core.stages import EVALUATE, Place, Stage, worker
from tlm_core.studies.params import BilstmParams, CurveParams, SizesParams, SubsetParams, family, size_name
from tlm_core.training.params import SeedsParams, training
from tlm_core.training.recipe import Recipe

SIZES = Stage("sizes", Place.COORDINATOR, "tlm_core.studies.subsets:sizes", 1, SizesParams)
SUBSET = Stage("subset", Place.COORDINATOR, "tlm_core.studies.subsets:subset", 1, SubsetParams)
BILSTM = worker("bilstm", "tlm_core.studies.stages:bilstm", 4, BilstmParams)
EVALUATE_BILSTM = worker("evaluate_bilstm", "tlm_core.studies.stages:evaluate_bilstm", 2, SeedsParams)
CURVE = worker("curve", "tlm_core.studies.curve:curve", 8, CurveParams)


def plan(inputs: PlanInputs[LearningCurve]) -> Plan:
    """A subset for each size and seed, each model trained on it, and one report of the curve."""
    options, seeds = inputs.options, inputs.seeds
    nodes = [
        *validate_nodes(inputs),
        Node("sizes", SIZES, SizesParams(sizes=options.sizes, seeds=seeds), {"task": "validate"}),
        *_encoder_checks(inputs),
    ]
    gathered = {"sizes": "sizes"}
    for size in sorted(options.sizes, key=lambda size: (size == 1, size)):  # 1 is the full train split
        for seed in seeds:
            point = _Point(inputs, size, seed)
            nodes += point.nodes()
            gathered |= {f"evaluate.{model}{point.end}": f"evaluate.{model}{point.end}" for model in options.models}
            if size == options.largest:
                gathered |= point.exported()
    nodes = group_by_seed(nodes, seeds, "curve")
    params = CurveParams(models=options.models, seeds=seeds, margin=options.margin)
    nodes.append(Node("curve", CURVE, params, gathered, gathers=True, group=gather_group(seeds)))
    # Subsets come first, so that impossible sizes fail before any training.
    nodes.sort(key=lambda node: node.place is not Place.COORDINATOR)
    return Plan(tuple(nodes), report="curve", model="curve")


def _encoder_checks(inputs: PlanInputs[LearningCurve]) -> list[Node]:
    """A check of the curve's published encoder for each seed, which the seed's workers run before they train."""
    if inputs.options.pretrained is None:
        return []
    check = check_encoder(inputs, pretrained(inputs.recipe, inputs.options))
    return [replace(check, name=f"check_encoder.s{seed}", seed=seed) for seed in inputs.seeds] if check else []


class _Point:
    """The nodes of one size and seed."""

    def __init__(self, inputs: PlanInputs[LearningCurve], size: float, seed: int) -> None:
        self._inputs = inputs
        self._recipe = inputs.recipe
        self._alone = task_only(inputs.recipe)
        self._options = inputs.options
        self._size = size
        self._seed = seed
        self.end = f".n{size_name(size)}.s{seed}"
        self._subset = f"subset{self.end}"

    def nodes(self) -> list[Node]:
        """Return the subset, the tokens, the joint stage if a model needs it, and each model."""
        params, sources = SubsetParams(size=self._size, seed=self._seed), {"task": "validate", "sizes": "sizes"}
        nodes = [Node(self._subset, SUBSET, params, sources, seed=self._seed), self._prepare("own", self._alone)]
        if {"tlm", "bilstm_tlm"} & set(self._options.models):
            nodes += self._retrieved()
        if "pretrained" in self._options.models:
            nodes.append(self._prepare("pretrained", pretrained(self._alone, self._options)))
        for model in self._options.models:
            nodes += self._model(model)
        return nodes

    def exported(self) -> dict[str, str]:
        """Return the inputs of the last stage at the largest size: each model and its tokens."""
        names = {}
        for model in self._options.models:
            names[f"prepared.{model}.s{self._seed}"] = self._prepared(model)
            names[f"trained.{model}.s{self._seed}"] = f"finetune.{model}{self.end}"
        return names

    def _prepared(self, model: str) -> str:
        return f"prepare.{family(model)}{self.end}"

    def _prepare(self, tokens: str, recipe: Recipe, select: Node | None = None) -> Node:
        return prepare_node(recipe, self._subset, select, f"prepare.{tokens}{self.end}", self._seed)

    def _retrieved(self) -> list[Node]:
        """Selection, tokens and joint stage of TLM. The queries are the subset's texts, or all train texts."""
        task = "validate" if self._options.unlabelled else self._subset
        select = select_node(self._inputs, task, f"select{self.end}", self._seed)
        assert select is not None, "`check` refuses these models without a corpus"
        prepare = self._prepare("tlm", self._recipe, select)
        return [select, prepare, joint_node(self._recipe, self._seed, f"joint{self.end}", prepare.name)]

    def _model(self, model: str) -> list[Node]:
        """Training and test of one model."""
        seed, prepared, name = self._seed, self._prepared(model), f"finetune.{model}{self.end}"
        start = {"prepared": prepared}
        if model in ("tlm", "bilstm_tlm"):
            start["joint"] = f"joint{self.end}"
        if model.startswith("bilstm"):
            trained = [Node(name, BILSTM, bilstm_params(self._recipe, self._options, seed), start, seed=seed)]
        else:
            recipe = {"tlm": self._recipe, "pretrained": pretrained(self._alone, self._options)}.get(model, self._alone)
            trained = finetune_nodes(recipe, seed, name, start)
        stage = EVALUATE_BILSTM if model.startswith("bilstm") else EVALUATE
        tested = {"prepared": prepared, "task": self._subset, f"finetune.s{seed}": name}
        evaluate = Node(f"evaluate.{model}{self.end}", stage, SeedsParams(seeds=(seed,)), tested, seed=seed)
        return [*trained, evaluate]


def task_only(recipe: Recipe) -> Recipe:
    """Return the recipe for the same encoder, trained on the task alone."""
    joint = recipe.joint.model_copy(update={"enabled": False})
    selection = recipe.selection.model_copy(update={"selector": "none"})
    return recipe.model_copy(update={"joint": joint, "selection": selection})


def pretrained(recipe: Recipe, options: LearningCurve) -> Recipe:
    """Return the recipe that finetunes the published encoder of the options, with rates capped for such encoders."""
    model = recipe.model.model_copy(update={"init": options.pretrained})
    tokenizer = recipe.tokenizer.model_copy(update={"source": options.pretrained})
    return recipe.model_copy(
        update={"model": model, "tokenizer": tokenizer, "finetune": recipe.finetune.for_published()}
    )


def bilstm_params(recipe: Recipe, options: LearningCurve, seed: int) -> BilstmParams:
    """Return finetuning's epochs, batch and validation with the BiLSTM's shape and optimizer."""
    optimizer = recipe.finetune.optimizer.model_copy(update={"name": "adamw", "lr": options.lstm.lr})
    finetune = recipe.finetune.model_copy(update={"rates": (), "optimizer": optimizer})
    return BilstmParams(finetune=finetune, lstm=options.lstm, **training(recipe, seed))
