"""The recipe: all options that change a training result. Options that change only speed or location are settings.

The gateway resolves the recipe and stores the values in the job's record, so a later release does not change the job.
This module does not import torch, because the gateway validates recipes with it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from tlm_core.errors import InvalidRecipe
from tlm_core.names import MODEL, MODEL_FOLDER
from tlm_core.selection.selectors import Selection
from tlm_core.wording import message_of, suggestion

Scale = Literal["instant", "quick", "tiny", "small", "medium", "large"]
RecipeName = Literal["fast", "paper"]
Precision = Literal["bf16", "fp32"]


OWN_STARTS = ("scratch", "counts")  # values of `model.init` besides a published encoder
OR_OWN = " or own"  # suffix of `tokenizer.source`: an own tokenizer may replace the published one
# Flags of x86 and ARM processors that multiply bfloat16, as Linux lists them in /proc/cpuinfo.
BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
AUTO_LENGTHS = (128, 256, 512)  # lengths that `model.max_length: auto` chooses from
AUTO_COVERED = 0.95  # share of the train texts that fit into the chosen length, if a length is large enough
PUBLISHED_LR = 3e-4  # maximum learning rate of finetuning a published encoder, if the user sets no rate


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Tokenizer(_Part):
    """A WordPiece tokenizer that the job trains on selection and train texts, or a published tokenizer."""

    source: str = Field(
        "own",
        pattern=rf"^(own|{MODEL}({OR_OWN})?|{MODEL_FOLDER})$",
        description="own (the job trains a tokenizer), hub:OWNER/NAME[@REVISION] or a folder; 'hub:OWNER/NAME or own': "
        "own if the hub does not provide this tokenizer",
    )
    vocab_size: int = Field(8192, ge=300, le=60_000, description="maximum vocabulary size of an own tokenizer")
    lowercase: bool = Field(True, description="whether an own tokenizer ignores case")

    @property
    def published(self) -> str | None:
        """The hub id or the folder of the published tokenizer; None if the job trains a tokenizer."""
        return None if self.source == "own" else self.source.removesuffix(OR_OWN)

    @property
    def may_be_own(self) -> bool:
        return self.source == "own" or self.source.endswith(OR_OWN)


class Model(_Part):
    """Shape and initial weights of the encoder.

    architecture: `modernbert` has gated blocks and rotary positions. `electra` is the paper's BERT. init: with
    `scratch`, all weights are random. With `counts`, token embeddings and vocabulary head start from counts on the
    training text. Other values name a published encoder.
    """

    architecture: str = Field(
        "modernbert",
        json_schema_extra=lambda schema: schema.update(enum=[*from_scratch()]),
        description="modernbert, bert, or electra: BERT with the paper's classifier",
    )
    init: str = Field(
        "scratch",
        pattern=rf"^(scratch|counts|{MODEL}|{MODEL_FOLDER})$",
        description="scratch, counts, hub:OWNER/NAME[@REVISION] or a folder",
    )
    layers: int = Field(4, ge=1, le=48, description="number of layers")
    hidden: int = Field(256, ge=16, le=4096, description="width of the encoder")
    heads: int = Field(4, ge=1, le=64, description="attention heads of a layer")
    intermediate: int = Field(1024, ge=16, le=16384, description="width of the feed-forward block")
    max_length: Annotated[int, Field(ge=16, le=2048)] | Literal["auto"] = Field(
        128, description="tokens of a row; a longer text becomes windows; auto: depends on the lengths of train texts"
    )
    windows: int = Field(8, ge=1, le=64, description="maximum windows of a text; pairs are truncated to one window")
    dropout: float = Field(0.0, ge=0.0, lt=1.0, description="share of values that training randomly sets to zero")

    @field_validator("architecture")
    @classmethod
    def _architecture_is_known(cls, name: str) -> str:
        if name not in (names := from_scratch()):
            raise ValueError(f"Cannot train '{name}' from scratch. Valid architectures: {', '.join(names)}.")
        return name

    @model_validator(mode="after")
    def _heads_divide_hidden(self) -> Model:
        if self.hidden % self.heads or (self.hidden // self.heads) % 2:
            raise ValueError(f"hidden ({self.hidden}) divided by heads ({self.heads}) must be an even whole number.")
        return self


def from_scratch() -> list[str]:
    """Return the names of the architectures that a job can train from scratch."""
    # A local import, because most modules read recipes and need no architecture.
    from tlm_core.training.architectures import ARCHITECTURES

    return [name for name, architecture in ARCHITECTURES.items() if architecture.from_scratch]


def auto_length(tokens: float) -> int:
    """Return the smallest of AUTO_LENGTHS that is at least `tokens`. If none is large enough, return the largest."""
    return next((length for length in AUTO_LENGTHS if tokens <= length), AUTO_LENGTHS[-1])


class Budget(_Part):
    """The budget of a training stage in exactly one unit. The learning rate falls to zero at the end of the budget."""

    steps: int | None = Field(None, ge=1, description="optimizer steps")
    tokens: int | None = Field(None, ge=1, description="real (non-padding) tokens")
    flops: float | None = Field(None, gt=0, description="floating-point operations")
    seconds: float | None = Field(None, gt=0, description="wall-clock time; no other job reuses the result")

    @model_validator(mode="after")
    def _exactly_one(self) -> Budget:
        units = [name for name, value in self if value is not None]
        if len(units) != 1:
            raise ValueError(
                f"The budget sets {' and '.join(units) or 'no unit'}. Set exactly one of {', '.join(dict(self))}."
            )
        return self

    @property
    def unit(self) -> str:
        return next(name for name, value in self if value is not None)

    @property
    def amount(self) -> float:
        return float(getattr(self, self.unit))


class Optimizer(_Part):
    """AdamW, or Muon for the encoder's matrices and AdamW for everything else."""

    name: Literal["adamw", "muon"] = Field("muon", description="adamw, or muon for the encoder's matrices")
    lr: float = Field(3e-3, gt=0, description="AdamW's peak learning rate")
    muon_lr: float = Field(0.02, gt=0, description="Muon's peak learning rate")
    weight_decay: float = Field(0.01, ge=0, description="weight decay; a step subtracts rate * decay * weight")
    betas: tuple[float, float] = Field((0.9, 0.98), description="decay rates of AdamW's two moments")
    eps: float = Field(1e-8, gt=0, description="what AdamW adds to the root of the mean squared gradient")
    warmup: float = Field(0.05, ge=0, lt=1, description="share of the budget in which the rates rise; then they fall")
    clip: float | None = Field(1.0, gt=0, description="maximum norm of the gradient; null: no maximum")
    non_finite: Literal["stop", "skip"] = Field("stop", description="what to do at a step whose loss is not finite")


class Joint(_Part):
    """Joint stage: masked language modeling (MLM) on passages and task texts, and the task's loss (paper section 3.2).

    One of rho1 + 1 batches has task texts. Its loss is (rho2 * MLM + task) / (rho2 + 1). The other batches have
    passages. With `bag_of_words`, MLM includes the bag-of-words loss.
    """

    enabled: bool = Field(True, description="false: finetuning only")
    task_loss: bool = Field(True, description="false: masked language modeling alone (two-stage baseline)")
    mlm_on_task: bool = Field(True, description="false: no masked language modeling on task texts")
    budget: Budget = Budget(tokens=2_000_000)
    batch_rows: int = Field(
        32,
        ge=1,
        le=8192,
        description="rows in a step, over all workers; fewer if model.max_length is auto and resolves to more than 128",
    )
    task_batch: int = Field(32, ge=1, le=8192, description="task texts in a batch")
    rho1: float = Field(3, ge=0, description="batches of passages for each batch of task texts")
    rho2: float = Field(1.0, ge=0, description="weight of MLM relative to the task's loss, on task texts")
    mask_rate: float = Field(0.3, gt=0, lt=1, description="share of masked tokens at the start")
    mask_rate_end: float | None = Field(None, gt=0, lt=1, description="mask rate at the end; null: unchanged")
    bag_of_words: Literal["auto"] | bool = Field(
        False,
        description="true: the mean vector of each text also predicts its words; auto: true unless the task has text "
        "pairs or marked spans",
    )
    optimizer: Optimizer = Optimizer()
    stop_if_behind: float | None = Field(
        None,
        ge=0,
        le=1,
        description="stop at half the budget if the encoder's validation score is below the linear model's by more "
        "than this value; finetuning then has one step; null: never stop",
    )

    def at_length(self, length: int, model: Model) -> Joint:
        """Return this part of the recipe for rows of `length` tokens.

        If `model.max_length` is `auto`, scale `batch_rows`. A step then has equally many tokens at each length.
        """
        if model.max_length != "auto":
            return self
        return self.model_copy(update={"batch_rows": max(1, self.batch_rows * AUTO_LENGTHS[0] // length)})

    def predicts_words(self, facts: Mapping[str, object]) -> bool:
        """Return whether the stage has the bag-of-words loss. facts: `data.json` of the stage `prepare`.

        With `auto`, tasks with text pairs or marked spans do not have the loss. Their labels depend on relations in the
        text, and the loss makes relations harder to learn.
        """
        if self.bag_of_words == "auto":
            return not (facts["pair"] or facts.get("marked_spans"))
        return self.bag_of_words

    @property
    def highest_mask_rate(self) -> float:
        return max(self.mask_rate, self.mask_rate_end or 0.0)

    @property
    def logits_per_token(self) -> float:
        """The floats that the losses need for each token and vocabulary entry, estimated for `training_bytes`.

        MLM needs one float for each masked token and vocabulary entry. The bag of words needs three floats for each
        text and vocabulary entry, and a text has about 20 tokens or more.
        """
        return self.highest_mask_rate + (3 / 20 if self.bag_of_words else 0.0)


class Finetune(_Part):
    """Finetune stage: the task's loss alone, with a new optimizer. The stage writes the best weights on validation."""

    epochs: float = Field(10, gt=0, description="passes over the train texts")
    min_steps: int | None = Field(
        None, ge=1, description="minimum number of steps; to reach it, a small task trains for up to twice the epochs"
    )
    max_steps: int | None = Field(None, ge=1, description="maximum number of steps, even if the epochs need more")
    max_steps_after_joint: int | None = Field(
        None, ge=1, description="max_steps of own encoders after a joint stage with the task loss, if max_steps is null"
    )
    batch: int = Field(32, ge=1, le=8192, description="texts in a step, over all workers")
    evaluations: int = Field(10, ge=1, description="number of validations, evenly spread, without that of step 0")
    reset_head: bool = Field(False, description="whether the classifier starts at random, as in the paper")
    optimizer: Optimizer = Optimizer(name="adamw", lr=3e-4)
    rates: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (), max_length=8, description="learning rates to try instead of optimizer.lr; validation chooses"
    )
    class_weights: Literal["none", "balanced", "auto"] = Field(
        "none", description="balanced: rare classes weigh more in the loss, up to 10 times; auto: validation decides"
    )

    @field_validator("rates")
    @classmethod
    def _rates_differ(cls, rates: tuple[float, ...]) -> tuple[float, ...]:
        if len(rates) == 1 or len({f"{rate:g}" for rate in rates}) < len(rates):  # stage names contain this form
            raise ValueError("Expected two or more different rates. Set a single rate as finetune.optimizer.lr.")
        return rates

    def steps(self, rows: int) -> int:
        """Return the number of steps for `rows` train texts. `min_steps` at most doubles the steps of `epochs`."""
        steps = max(1, math.ceil(self.epochs * rows / self.batch))
        steps = max(steps, min(2 * steps, self.min_steps or 0))
        return min(steps, self.max_steps) if self.max_steps else steps

    @property
    def has_tries(self) -> bool:
        """Whether validation chooses among several finetunings."""
        return bool(self.rates) or self.class_weights == "auto"

    def with_values(self, values: Mapping[str, object]) -> Finetune:
        """Return a copy with the learning rate `lr` and the `class_weights` in `values`, if `values` has these keys."""
        optimizer = self.optimizer.model_copy(update={"lr": values.get("lr", self.optimizer.lr)})
        weights = values.get("class_weights", self.class_weights)
        return self.model_copy(update={"optimizer": optimizer, "class_weights": weights})

    def check_weights(self, task: str, has_classes: bool) -> None:
        """Raise InvalidRecipe for class weights of a regression task."""
        if self.class_weights != "none" and not has_classes:
            raise InvalidRecipe(
                f"The task '{task}' is a regression task, which has no classes. Set finetune.class_weights to none."
            )

    def for_published(self) -> Finetune:
        """Return a copy with rates of at most PUBLISHED_LR. At higher rates, an encoder forgets its pretraining."""
        rates = tuple(dict.fromkeys(min(rate, PUBLISHED_LR) for rate in self.rates or (self.optimizer.lr,)))
        optimizer = self.optimizer.model_copy(update={"lr": rates[0]})
        return self.model_copy(update={"optimizer": optimizer, "rates": rates if len(rates) > 1 else ()})


class SelfTraining(_Part):
    """Training on passages that the linear model labels (SentAugment, arXiv 2010.02194).

    A job trains a linear model for each amount. Validation chooses one of these amounts, also for the encoder.
    """

    amounts: tuple[Annotated[float, Field(ge=0, le=100)], ...] = Field(
        (),
        max_length=8,
        description="labeled pieces of passages per train row, such as 0, 3, 10, 30; validation chooses; empty: none",
    )


class Recipe(_Part):
    """All options that change a result."""

    name: RecipeName
    scale: Scale
    selection: Selection = Selection()
    self_training: SelfTraining = SelfTraining()
    tokenizer: Tokenizer = Tokenizer()
    model: Model = Model()
    joint: Joint = Joint()
    finetune: Finetune = Finetune()
    ensemble: bool = Field(
        False, description="true: the returned model averages the encoders of all seeds; false: it has one encoder"
    )
    refit: bool = Field(
        False, description="true: a `train` job trains its models again on train and validation, after all choices"
    )
    precision: Literal["auto", "bf16", "fp32"] = Field(
        "auto", description="of matrix products; auto: the gateway's setting, or what its processor computes natively"
    )
    checkpoint_steps: int = Field(200, ge=1, description="steps between two checkpoints")
    profile: bool = Field(False, description="write a profiler trace of a few steps; the weights do not change")

    @model_validator(mode="after")
    def _published_weights_keep_their_vocabulary(self) -> Recipe:
        if self.model.init not in (*OWN_STARTS, self.tokenizer.source):
            raise ValueError(
                f"model.init '{self.model.init}' needs the encoder's tokenizer. Set tokenizer.source to the same value."
            )
        return self

    @property
    def finetuning(self) -> Finetune:
        """The settings of the finetune stage, in which `max_steps` is the limit that applies to this recipe."""
        learned = self.joint.enabled and self.joint.task_loss and self.model.init in OWN_STARTS
        limit = self.finetune.max_steps or (self.finetune.max_steps_after_joint if learned else None)
        return self.finetune.model_copy(update={"max_steps": limit, "max_steps_after_joint": None})

    @property
    def number_format(self) -> Precision:
        """The precision of matrix products. Raises InvalidRecipe for `auto`, which `resolve` replaces."""
        if self.precision == "auto":
            raise InvalidRecipe("The recipe's precision is 'auto'. Set 'precision' to bf16 or fp32.")
        return self.precision


@cache
def native_precision() -> Precision:
    """Return bf16 if this machine's processor has instructions for bf16, else fp32. Reads /proc/cpuinfo.

    A processor without such instructions emulates bf16, which takes about eighty times as long.
    """
    flags = {flag for line in cpu_facts() if line.startswith(("flags", "Features")) for flag in line.split()}
    return "bf16" if flags & BF16_FLAGS else "fp32"


def cpu_facts() -> list[str]:
    """Return the lines of /proc/cpuinfo; [] if a sandbox hides the file."""
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def _fast(scale: Scale) -> Recipe:
    """Return our recipe `fast`, which costs less than the paper's. See the measurements in docs/experiments.md."""
    if scale == "instant":
        return Recipe(name="fast", scale=scale, selection=Selection(selector="none"), refit=True)
    shapes = {
        "quick": (2, 128, 2, 256, 400_000),
        "tiny": (3, 192, 3, 384, 3_000_000),
        "small": (6, 384, 6, 768, 40_000_000),
        "medium": (12, 768, 12, 1152, 400_000_000),
        "large": (24, 1024, 16, 2624, 2_000_000_000),
    }
    layers, hidden, heads, intermediate, tokens = shapes[scale]
    on_cpu = scale in ("quick", "tiny")
    return Recipe(
        name="fast",
        scale=scale,
        selection=Selection(top_k=30 if on_cpu else 50),
        self_training=SelfTraining(amounts=(0, 3, 10, 30)),
        tokenizer=Tokenizer(vocab_size=8192 if on_cpu else 30_522),
        model=Model(
            init="counts", max_length="auto", layers=layers, hidden=hidden, heads=heads, intermediate=intermediate
        ),
        joint=Joint(
            budget=Budget(tokens=tokens),
            batch_rows=32 if on_cpu or scale == "small" else 256,
            bag_of_words="auto" if scale == "quick" else False,
        ),
        finetune=Finetune(
            epochs=5 if scale == "quick" else 10,
            min_steps=500 if scale == "quick" else None,
            max_steps_after_joint={"quick": 500, "tiny": 700}.get(scale),
            optimizer=Optimizer(name="adamw", lr=1e-3 if on_cpu else 3e-4),
        ),
        ensemble=True,
        refit=True,
    )


def _paper(scale: Scale) -> Recipe:
    """Return the paper's recipe for SciERC. For other tasks, see benchmarks/paper_table.yaml.

    top_k, rho1, rho2, steps and rows come from table B.1 of arXiv 2111.04130. The shapes are those of the released
    models. The other values come from the folder example_scripts of the release, which has only the scale small. So
    medium and large have these values too. The scale tiny is our own reduction.
    """
    tiny = scale == "tiny"
    layers, hidden, top_k, rho1, steps, rows = {
        "tiny": (4, 256, 50, 19, 1_500, 32),
        "small": (12, 768, 5_000, 999, 150_000, 256),
        "medium": (12, 768, 5_000, 999, 300_000, 256),
        "large": (24, 1024, 10_000, 1_999, 300_000, 512),
    }[scale]
    warmup = 1 / 15 if tiny else 10_000 / steps
    optimizer = Optimizer(
        name="adamw", lr=1e-4, weight_decay=0.01, betas=(0.9, 0.999), eps=1e-6, warmup=warmup, clip=None
    )
    return Recipe(
        name="paper",
        scale=scale,
        selection=Selection(top_k=top_k),
        tokenizer=Tokenizer(source="own" if tiny else f"hub:google-bert/bert-base-uncased{OR_OWN}", vocab_size=30_522),
        model=Model(
            architecture="electra",
            layers=layers,
            hidden=hidden,
            heads=hidden // 64,
            intermediate=4 * hidden,
            dropout=0.1,
            windows=1,
        ),
        joint=Joint(
            budget=Budget(steps=steps),
            batch_rows=rows,
            task_batch=rows,
            rho1=rho1,
            rho2=20,
            mask_rate=0.15,
            optimizer=optimizer,
        ),
        finetune=Finetune(
            epochs=10 if tiny else 100_000,  # max_steps limits the steps
            max_steps=30_000,
            batch=32,
            evaluations=10 if tiny else 30,
            reset_head=True,
            optimizer=optimizer.model_copy(update={"lr": 1e-4 if tiny else 2e-5, "weight_decay": 0.0, "warmup": 0.1}),
        ),
        checkpoint_steps=200 if tiny else 1_000,
    )


def resolve(
    name: str, scale: str, overrides: Mapping[str, Any] | None = None, *, precision: Precision | None = None
) -> Recipe:
    """Return the preset `name` at `scale` with dotted `overrides` ({"finetune.epochs": 5}).

    precision: replaces `auto`; by default the native precision of this machine. If no override sets a learning rate,
    `for_published` limits the rates of a published encoder. Raises an InvalidRecipe that names the invalid key and, for
    an unknown key, the most similar known key.
    """
    presets = {"fast": _fast, "paper": _paper}
    if name not in presets:
        raise InvalidRecipe(f"Unknown recipe '{name}'. Valid recipes: {', '.join(presets)}.")
    if scale not in get_args(Scale):
        hint = suggestion(scale, get_args(Scale), f"Valid scales: {', '.join(get_args(Scale))}.")
        raise InvalidRecipe(f"Unknown scale '{scale}'. {hint}")
    if scale == "instant" and (name != "fast" or overrides):
        raise InvalidRecipe(
            "The scale 'instant' trains only the linear model, which has no recipe. Omit the recipe and its overrides, "
            "or choose another scale."
        )
    if scale == "quick" and name != "fast":
        raise InvalidRecipe(f"The recipe '{name}' has no scale 'quick'. Use the recipe 'fast', or the scale 'tiny'.")
    data = presets[name](scale).model_dump()  # type: ignore[arg-type]
    known = sorted(leaves(data).keys() - {"name", "scale"})
    for key, value in (overrides or {}).items():
        _override(data, key, value, known)
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'recipe'}: {message_of(e)}" for e in error.errors())
        raise InvalidRecipe(f"Invalid recipe. {problems}") from error
    _check_trainable(recipe)
    if recipe.precision == "auto":
        recipe = recipe.model_copy(update={"precision": precision or native_precision()})
    if recipe.model.init in OWN_STARTS or {"finetune.optimizer.lr", "finetune.rates"} & set(overrides or ()):
        return recipe
    return recipe.model_copy(update={"finetune": recipe.finetune.for_published()})


def _check_trainable(recipe: Recipe) -> None:
    """Raise InvalidRecipe if the recipe cannot train. `Recipe` does not check this, so old records stay readable."""
    for key, part in (("joint", recipe.joint), ("finetune", recipe.finetune)):
        if not all(0 <= beta < 1 for beta in part.optimizer.betas):
            raise InvalidRecipe(
                f"Invalid {key}.optimizer.betas {list(part.optimizer.betas)}. Each must be at least 0 and below 1."
            )
    joint = recipe.joint
    if joint.enabled and recipe.selection.selector == "none" and not (joint.task_loss or joint.mlm_on_task):
        raise InvalidRecipe(
            "With selection.selector 'none', the joint stage has nothing to train on, because joint.task_loss and "
            "joint.mlm_on_task are false. Set one of them to true, or joint.enabled to false."
        )
    if joint.stop_if_behind is not None and not (joint.enabled and joint.task_loss):
        raise InvalidRecipe(
            "joint.stop_if_behind needs a classifier from the joint stage, but joint.enabled or joint.task_loss is "
            "false. Set joint.enabled and joint.task_loss to true, or joint.stop_if_behind to null."
        )


def leaves(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of nested mappings by dotted key: `{"joint": {"rho1": 3}}` gives `{"joint.rho1": 3}`."""
    values_by_key: dict[str, Any] = {}
    for key, value in data.items():
        values_by_key |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return values_by_key


def differences(values: Sequence[Mapping[str, Any]]) -> dict[str, tuple[Any, ...]]:
    """Return the keys with different values: dotted key → value in each mapping. A missing key counts as None."""
    flat = [leaves(value) for value in values]
    keys = dict.fromkeys(key for entry in flat for key in entry)
    rows = {key: tuple(entry.get(key) for entry in flat) for key in keys}
    return {key: row for key, row in rows.items() if any(value != row[0] for value in row)}


def _override(data: dict[str, Any], key: str, value: Any, known: list[str]) -> None:
    if key not in known:
        hint = suggestion(key, known, f"Valid keys: {', '.join(known)}.", cutoff=0.5)
        raise InvalidRecipe(f"Unknown recipe key '{key}'. {hint}", key=key)
    *parents, leaf = key.split(".")
    target = data
    for parent in parents:
        target = target[parent]
    if parents and parents[-1] == "budget" and value is not None:
        target.update(dict.fromkeys(target))  # The budget of the preset may have another unit.
    target[leaf] = value
