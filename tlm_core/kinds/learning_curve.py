"""Kind `learning_curve`: the number of labeled texts from which a BiLSTM is as good as an encoder (arXiv 2006.08671).

The linear model is part of each curve, because it shows from which size the other models are worth their training.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from pydantic import Field, model_validator

from tlm_core.errors import InvalidRequest
from tlm_core.jobs.nodes import (
    baseline_node,
    check_encoder,
    finetune_nodes,
    gather_group,
    group_by_seed,
    joint_node,
    prepare_node,
    select_node,
    validate_nodes,
    with_tries,
)
from tlm_core.jobs.plan import Node, Plan
from tlm_core.jobs.spec import KindOptions, PlanInputs
from tlm_core.kinds.kind import FormField, Kind
from tlm_core.linear.params import BaselineParams
from tlm_core.names import MODEL, MODEL_FOLDER
from tlm_core.stages import EVALUATE, EVALUATE_LINEAR
from tlm_core.studies.params import (
    LSTM,
    BilstmParams,
    CurveModel,
    CurveParams,
    SizesParams,
    SubsetParams,
    family,
    linear_seeds,
    size_name,
)
from tlm_core.training.params import SeedsParams, training
from tlm_core.training.recipe import Recipe
from tlm_core.training.stage import Place, Stage

SIZES = Stage("sizes", "tlm_core.studies.subsets:sizes", 3, SizesParams, Place.COORDINATOR)
SUBSET = Stage("subset", "tlm_core.studies.subsets:subset", 2, SubsetParams, Place.COORDINATOR)
BILSTM = Stage("bilstm", "tlm_core.studies.bilstm_stages:bilstm", 6, BilstmParams, parallel=True)
EVALUATE_BILSTM = Stage(
    "evaluate_bilstm", "tlm_core.studies.bilstm_stages:evaluate_bilstm", 7, SeedsParams, parallel=True
)
CURVE = Stage("curve", "tlm_core.studies.curve:curve", 17, CurveParams)

WITH_TLM = {"tlm", "bilstm_tlm"}


class LearningCurveOptions(KindOptions):
    """Sizes and models of a curve. Models: `bilstm` from scratch, `bilstm_tlm` with TLM's token embeddings, `encoder`
    trained on the task alone, `tlm`, and `pretrained`, a published encoder. Each curve also has the linear model."""

    sizes: tuple[float, ...] = Field(
        (0.01, 0.03, 0.1, 0.3, 1.0), min_length=2, max_length=20, description="shares of the train rows, or counts"
    )
    models: tuple[CurveModel, ...] = Field(("bilstm", "encoder", "tlm"), min_length=1)
    lstm: LSTM = LSTM()
    pretrained: str | None = Field(
        None, pattern=rf"^({MODEL}|{MODEL_FOLDER})$", description="hub:OWNER/NAME[@REVISION] or a folder"
    )
    unlabelled: bool = Field(False, description="use all train texts as queries of TLM, not only those of the subset")
    margin: float = Field(0.01, ge=0, lt=1, description="difference in accuracy at which two models count as equal")

    @property
    def largest(self) -> float:
        """The size with the most rows. Size 1, the full train split, counts as larger than any number of rows."""
        shares = [size for size in self.sizes if size <= 1]
        return 1 if 1 in shares else max(self.sizes)

    @model_validator(mode="after")
    def _check(self) -> LearningCurveOptions:
        if min(self.sizes) <= 0 or any(size > 1 and size != int(size) for size in self.sizes):
            raise ValueError("Each value of 'sizes' must be a share above 0 and up to 1, or a whole number above 1.")
        for name, values in (("sizes", self.sizes), ("models", self.models)):
            if twice := [value for value, count in Counter(values).items() if count > 1]:
                raise ValueError(f"The value {twice[0]} occurs twice in '{name}'. Name each value once.")
        if any(size > 1 for size in self.sizes) and any(size < 1 for size in self.sizes):
            raise ValueError(
                "'sizes' mixes shares and counts. Give all sizes as shares or all as counts. "
                "In both forms, 1 means the full train split."
            )
        if "bilstm" not in self.models:
            raise ValueError("'models' must include 'bilstm', because the report compares the other models with it.")
        if ("pretrained" in self.models) != (self.pretrained is not None):
            raise ValueError(
                "The model 'pretrained' and the option 'pretrained' belong together, but only one is given. "
                "Give both or neither."
            )
        return self


def check(options: LearningCurveOptions, recipe: Recipe, _: tuple[str, ...]) -> None:
    """Raise InvalidRequest if a model in WITH_TLM is chosen, but the recipe uses no corpus or no joint stage."""
    if WITH_TLM & set(options.models) and not (recipe.selection.needs_corpus and recipe.joint.enabled):
        raise InvalidRequest(
            "The models 'tlm' and 'bilstm_tlm' of a learning curve need a corpus and a joint stage. Give a corpus, "
            "and do not set 'selection.selector' to none or 'joint.enabled' to false. Or remove these models."
        )


def plan(inputs: PlanInputs[LearningCurveOptions]) -> Plan:
    """Return a plan with a subset for each size and seed, the training of each model on each subset, and a report."""
    options, seeds = inputs.options, inputs.seeds
    nodes = [
        *validate_nodes(inputs),
        Node("sizes", SIZES, SizesParams(sizes=options.sizes, seeds=seeds), {"task": "validate"}),
    ]
    if options.pretrained and (check := check_encoder(inputs, pretrained(inputs.recipe, options))):
        nodes += [replace(check, name=f"check_encoder.s{seed}", seed=seed) for seed in seeds]  # before training
    linear: list[Node] = []
    gathered = {"sizes": "sizes", "task": "validate"}
    for size in sorted(options.sizes, key=lambda size: (size == 1, size)):  # 1 is the full train split
        for seed in seeds:
            point = _Point(inputs, size, seed)
            nodes += point.nodes()
            linear += point.linear()
            gathered |= {f"evaluate.{model}{point.end}": f"evaluate.{model}{point.end}" for model in options.models}
            if size == options.largest:
                gathered |= point.exported()
    gathered |= {node.name: node.name for node in linear if node.stage is EVALUATE_LINEAR}
    nodes = [*group_by_seed(nodes, seeds), *linear]
    params = CurveParams(models=options.models, seeds=seeds, margin=options.margin)
    nodes.append(Node("curve", CURVE, params, gathered, gathers=True, group=gather_group(seeds)))
    # Subsets come first, so that impossible sizes fail before any training.
    nodes.sort(key=lambda node: node.place is not Place.COORDINATOR)
    return Plan(tuple(nodes), report="curve", model="curve")


@dataclass(frozen=True)
class _Point:
    """Creates the nodes for one point of a curve: one size and one seed."""

    inputs: PlanInputs[LearningCurveOptions]
    size: float
    seed: int

    @property
    def end(self) -> str:
        """The suffix of the names of all nodes of the point, such as `.n0.1.s0` for size 0.1 and seed 0."""
        return f".n{size_name(self.size)}.s{self.seed}"

    @property
    def subset(self) -> str:
        return f"subset{self.end}"

    def nodes(self) -> list[Node]:
        """Return the nodes that write subset and tokens, run the joint stage if needed, and train and test models."""
        params, sources = SubsetParams(size=self.size, seed=self.seed), {"task": "validate", "sizes": "sizes"}
        nodes = [Node(self.subset, SUBSET, params, sources, seed=self.seed), self._prepare("own")]
        if WITH_TLM & set(self.inputs.options.models):
            nodes += self._retrieved()
        if "pretrained" in self.inputs.options.models:
            nodes.append(self._prepare("pretrained"))
        for model in self.inputs.options.models:
            nodes += self._model(model)
        return nodes

    def linear(self) -> list[Node]:
        """Return the nodes that fit and test the linear model, or [] if another seed has these nodes for this size.

        All points share one group, because a fit is shorter than the start of a submission. If the plan has
        selections, the group has no encoders, so that workers fit linear models during the selections.
        """
        if self.seed not in linear_seeds(self.size, self.inputs.seeds):
            return []
        task = "validate" if self.size == 1 else self.subset
        group = "baseline" if WITH_TLM & set(self.inputs.options.models) else "main"
        baseline = baseline_node(group, task, f"baseline{self.end}")
        inputs = {"task": task, "baseline": baseline.name}
        name = f"evaluate.linear{self.end}"
        return [baseline, Node(name, EVALUATE_LINEAR, BaselineParams(), inputs, group=group)]

    def exported(self) -> dict[str, str]:
        """Return the inputs for the export of a model: input name → node that trains a model or writes its tokens."""
        names = {"trained.linear": f"baseline{self.end}"} if self.seed == self.inputs.seeds[0] else {}
        for model in self.inputs.options.models:
            names[f"prepared.{model}.s{self.seed}"] = self._prepared(model)
            names[f"trained.{model}.s{self.seed}"] = f"finetune.{model}{self.end}"
        return names

    def _prepared(self, model: str) -> str:
        return f"prepare.{family(model)}{self.end}"

    def _recipe(self, of: str) -> Recipe:
        """Return the recipe for a family of models that share tokens. of: own, tlm or pretrained."""
        if of == "tlm":
            return self.inputs.recipe
        alone = task_only(self.inputs.recipe)
        return pretrained(alone, self.inputs.options) if of == "pretrained" else alone

    def _prepare(self, of: str, select: Node | None = None) -> Node:
        """Return the node that writes the tokens for a family of models. of: own, tlm or pretrained."""
        return prepare_node(self._recipe(of), self.subset, select, f"prepare.{of}{self.end}", self.seed)

    def _retrieved(self) -> list[Node]:
        """Return the nodes that select passages, write their tokens, and run the joint stage."""
        task = "validate" if self.inputs.options.unlabelled else self.subset
        select = select_node(self.inputs, task, f"select{self.end}", self.seed)
        assert select is not None, "`check` refuses these models without a corpus"
        prepare = self._prepare("tlm", select)
        return [select, prepare, joint_node(self.inputs.recipe, self.seed, f"joint{self.end}", prepare.name)]

    def _model(self, model: str) -> list[Node]:
        """Return the nodes that train and test one model."""
        seed, prepared, name = self.seed, self._prepared(model), f"finetune.{model}{self.end}"
        start = {"prepared": prepared}
        if model in WITH_TLM:
            start["joint"] = f"joint{self.end}"
        if model.startswith("bilstm"):
            params = bilstm_params(self.inputs.recipe, self.inputs.options, seed)
            trained = with_tries(Node(name, BILSTM, params, start, seed=seed), params.finetune)
        else:
            trained = finetune_nodes(self._recipe(family(model)), seed, name, start)
        stage = EVALUATE_BILSTM if model.startswith("bilstm") else EVALUATE
        tested = {"prepared": prepared, "task": self.subset, f"finetune.s{seed}": name}
        evaluate = Node(f"evaluate.{model}{self.end}", stage, SeedsParams(seeds=(seed,)), tested, seed=seed)
        return [*trained, evaluate]


def task_only(recipe: Recipe) -> Recipe:
    """Return a copy of the recipe without the joint stage. The settings of the selection then have no effect."""
    return recipe.model_copy(update={"joint": recipe.joint.model_copy(update={"enabled": False})})


def pretrained(recipe: Recipe, options: LearningCurveOptions) -> Recipe:
    """Return a copy of the recipe for the encoder `options.pretrained`, with the learning rates of `for_published`."""
    model = recipe.model.model_copy(update={"init": options.pretrained})
    tokenizer = recipe.tokenizer.model_copy(update={"source": options.pretrained})
    return recipe.model_copy(
        update={"model": model, "tokenizer": tokenizer, "finetune": recipe.finetune.for_published()}
    )


def bilstm_params(recipe: Recipe, options: LearningCurveOptions, seed: int) -> BilstmParams:
    """Return the parameters for a BiLSTM: as in finetuning, but with AdamW and the settings in `options.lstm`."""
    lstm = options.lstm
    if recipe.model.init != "counts":  # Then `prepare` writes no count vectors.
        lstm = lstm.model_copy(update={"init": "scratch"})
    optimizer = recipe.finetune.optimizer.model_copy(update={"name": "adamw", "lr": options.lstm.lr})
    finetune = task_only(recipe).finetuning.model_copy(update={"rates": (), "optimizer": optimizer})
    return BilstmParams(finetune=finetune, lstm=lstm, **training(recipe, seed))


def recipes(options: LearningCurveOptions, recipe: Recipe) -> list[Recipe]:
    """Return all recipes that the job trains with."""
    return [recipe, pretrained(recipe, options)] if options.pretrained else [recipe]


def _parse_lstm(text: str) -> dict[str, int]:
    """Return the option `lstm` for a text LAYERS-WIDTH, as in the paper: `4-256`. Raises InvalidRequest."""
    parts = text.strip().upper().removeprefix("LSTM-").split("-")
    if len(parts) != 2 or not all(part.isascii() and part.isdigit() for part in parts):
        raise InvalidRequest(f"Invalid BiLSTM '{text.strip()[:40]}'. Expected LAYERS-WIDTH, such as 4-256.")
    layers, width = (int(part[:9]) for part in parts)
    return {"layers": layers, "hidden": width, "embedding": width}


KIND = Kind(
    "learning_curve",
    "how many labels are needed, and whether a BiLSTM is enough",
    LearningCurveOptions,
    plan,
    check=check,
    recipes=recipes,
    fields=(
        FormField("sizes", "Sizes", "shares of the train rows, or counts", "numbers"),
        FormField(
            "models",
            "Models",
            "in addition to the linear model, which each curve has",
            widget="choices",
            required="bilstm",
            choices={
                "bilstm": "required",
                "bilstm_tlm": "with the token embeddings of TLM",
                "encoder": "on the task alone",
                "tlm": "needs a corpus",
                "pretrained": "named below",
            },
        ),
        FormField("pretrained", "Pretrained encoder", "such as hub:owner/name"),
        FormField("unlabelled", "TLM queries with all train texts", "also those that a size leaves out", "checkbox"),
        FormField(
            "lstm",
            "BiLSTM",
            "layers and width, as LSTM-4-256 in the paper",
            parse=_parse_lstm,
            show=lambda lstm: f"{lstm.layers}-{lstm.hidden}",
        ),
        FormField("margin", "Margin", "difference in accuracy at which two models count as equal", "number"),
    ),
)
