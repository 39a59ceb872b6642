"""The recipe: everything that changes a training *result*. What only changes speed or place is a setting.

A recipe is one frozen value, resolved when a job is submitted and kept in its record, so a later release
cannot change a job that is under way. Importing this module needs no torch: the gateway checks recipes with it.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from tlm_core.errors import InvalidRecipe
from tlm_core.hub import MODEL
from tlm_core.selection.selectors import Selection
from tlm_core.training.architectures import ARCHITECTURES

Scale = Literal["tiny", "small", "medium", "large"]
RecipeName = Literal["fast", "paper"]
Precision = Literal["bf16", "fp32"]


OWN_STARTS = ("scratch", "counts")  # what `model.init` may be besides a published encoder
FROM_SCRATCH = [name for name, entry in ARCHITECTURES.items() if entry.from_scratch]
# Flags of x86 and ARM processors that multiply bfloat16, as Linux lists them in /proc/cpuinfo.
BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
PUBLISHED_LR = 3e-4  # highest finetuning rate that a published encoder gets unless it is asked for


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Tokenizer(_Part):
    """Own WordPiece trained on selection and train text, or a published one."""

    source: str = Field(
        "own", pattern=rf"^(own|{MODEL}|/.+)$", description="own, hub:OWNER/NAME[@REVISION] or a folder"
    )
    vocab_size: int = Field(8192, ge=300, le=60_000, description="of an own tokenizer")
    lowercase: bool = True


class Model(_Part):
    """Shape of the encoder. `modernbert` has gated blocks and rotary positions; `bert` is the paper's.

    init: `scratch` is random; `counts` is random but for the token embeddings and the vocabulary's bias, which are
    counted on the training text; else a published encoder.
    """

    architecture: str = Field("modernbert", json_schema_extra={"enum": [*FROM_SCRATCH]})
    init: str = Field(
        "scratch",
        pattern=rf"^(scratch|counts|{MODEL}|/.+)$",
        description="scratch, counts, hub:OWNER/NAME[@REVISION] or a folder",
    )
    layers: int = Field(4, ge=1, le=48)
    hidden: int = Field(256, ge=16, le=4096)
    heads: int = Field(4, ge=1, le=64)
    intermediate: int = Field(1024, ge=16, le=16384, description="width of the feed-forward block")
    max_length: int = Field(128, ge=16, le=2048, description="tokens of a row; longer task texts are cut")
    dropout: float = Field(0.0, ge=0.0, lt=1.0)

    @field_validator("architecture")
    @classmethod
    def _architecture_is_known(cls, name: str) -> str:
        if name not in ARCHITECTURES or not ARCHITECTURES[name].from_scratch:
            raise ValueError(f"Unknown architecture '{name}'. Valid architectures: {', '.join(FROM_SCRATCH)}.")
        return name

    @model_validator(mode="after")
    def _heads_divide_hidden(self) -> Model:
        if self.hidden % self.heads or (self.hidden // self.heads) % 2:
            raise ValueError(f"hidden ({self.hidden}) must be an even multiple of heads ({self.heads})")
        return self


class Budget(_Part):
    """When a stage ends, in exactly one unit. The learning rate decays over this budget."""

    steps: int | None = Field(None, ge=1)
    tokens: int | None = Field(None, ge=1, description="real (non-padding) tokens")
    flops: float | None = Field(None, gt=0)
    seconds: float | None = Field(None, gt=0, description="wall clock; not reproducible, never cached")

    @model_validator(mode="after")
    def _exactly_one(self) -> Budget:
        given = [name for name, value in self if value is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of steps, tokens, flops, seconds; got {given or 'none'}")
        return self

    @property
    def unit(self) -> str:
        return next(name for name, value in self if value is not None)

    @property
    def amount(self) -> float:
        return float(getattr(self, self.unit))


class Optimizer(_Part):
    """AdamW, or Muon on the matrices with AdamW on everything else."""

    name: Literal["adamw", "muon"] = "muon"
    lr: float = Field(3e-3, gt=0, description="AdamW's peak learning rate")
    muon_lr: float = Field(0.02, gt=0, description="Muon's peak learning rate")
    weight_decay: float = Field(0.01, ge=0)
    betas: tuple[float, float] = (0.9, 0.98)
    warmup: float = Field(0.05, ge=0, lt=1, description="share of the budget; then linear to zero")
    clip: float | None = Field(1.0, gt=0, description="limit of the gradient's norm")
    non_finite: Literal["stop", "skip"] = Field("stop", description="what to do with a step whose loss is no number")


class Joint(_Part):
    """Joint stage: MLM on retrieved and task text, and the task's own loss (paper section 3.2).

    A task batch costs (rho2 * MLM + task) / (rho2 + 1); of rho1 + 1 batches one is a task batch.
    """

    enabled: bool = Field(True, description="false: task only, straight to finetuning")
    task_loss: bool = Field(True, description="false: masked language modelling alone (two-stage baseline)")
    mlm_on_task: bool = Field(True, description="false: no masked language modelling on task text")
    budget: Budget = Budget(tokens=2_000_000)
    batch_rows: int = Field(32, ge=1, le=8192, description="rows of max_length tokens in a step, over all workers")
    task_batch: int = Field(32, ge=1, le=8192, description="task texts in a task batch")
    rho1: float = Field(3, ge=0, description="retrieved batches for each task batch")
    rho2: float = Field(1.0, ge=0, description="weight of MLM against the task's loss on task batches")
    mask_rate: float = Field(0.3, gt=0, lt=1, description="share of tokens masked at the start")
    mask_rate_end: float | None = Field(None, gt=0, lt=1, description="share at the end; None: constant")
    optimizer: Optimizer = Optimizer()

    @property
    def highest_mask_rate(self) -> float:
        return max(self.mask_rate, self.mask_rate_end or 0.0)


class Finetune(_Part):
    """Finetune stage: the task's loss only, a fresh optimiser; the best validation score decides."""

    epochs: float = Field(10, gt=0)
    max_steps: int | None = Field(None, ge=1, description="cap on the steps that epochs give")
    batch: int = Field(32, ge=1, le=8192)
    evaluations: int = Field(10, ge=1, description="validations spread over the stage, the untouched model beside them")
    reset_head: bool = False
    optimizer: Optimizer = Optimizer(name="adamw", lr=3e-4)
    rates: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (), max_length=8, description="tried one after another in place of optimizer.lr; validation chooses"
    )

    @field_validator("rates")
    @classmethod
    def _rates_differ(cls, rates: tuple[float, ...]) -> tuple[float, ...]:
        if len(rates) == 1 or len({f"{rate:g}" for rate in rates}) < len(rates):  # they name stages, so short
            raise ValueError("give two or more rates that differ, or a single one as finetune.optimizer.lr")
        return rates

    def steps(self, rows: int) -> int:
        """Steps that the epochs give over that many train texts, under their cap."""
        steps = max(1, math.ceil(self.epochs * rows / self.batch))
        return min(steps, self.max_steps) if self.max_steps else steps

    def for_published(self) -> Finetune:
        """The same for a published encoder: at the rate of a small one of our own it would forget what it knows."""
        lr, *more = dict.fromkeys(min(rate, PUBLISHED_LR) for rate in self.rates or (self.optimizer.lr,))
        optimizer = self.optimizer.model_copy(update={"lr": lr})
        return self.model_copy(update={"optimizer": optimizer, "rates": (lr, *more) if more else ()})


class Recipe(_Part):
    """Everything that changes a result."""

    name: RecipeName
    scale: Scale
    selection: Selection = Selection()
    tokenizer: Tokenizer = Tokenizer()
    model: Model = Model()
    joint: Joint = Joint()
    finetune: Finetune = Finetune()
    precision: Literal["auto", "bf16", "fp32"] = Field(
        "auto",
        description="of matrix products; a submission resolves auto to what the cluster computes natively",
    )
    checkpoint_steps: int = Field(200, ge=1, description="steps between two checkpoints")
    profile: bool = Field(False, description="leave a trace of a few steps beside the model; the weights are the same")

    @model_validator(mode="after")
    def _published_weights_keep_their_vocabulary(self) -> Recipe:
        if self.model.init not in (*OWN_STARTS, self.tokenizer.source):
            raise ValueError(f"model.init '{self.model.init}' needs tokenizer.source to be the same")
        return self

    @property
    def number_format(self) -> Precision:
        """The precision of matrix products. Raises InvalidRecipe for `auto`, which `resolve` replaces."""
        if self.precision == "auto":
            raise InvalidRecipe("The recipe's precision is not resolved. Set 'precision' to bf16 or fp32.")
        return self.precision


@cache
def native_precision() -> Precision:
    """Return bf16 if this machine's processor has instructions for it, else fp32. Reads /proc/cpuinfo, without torch.

    A processor without such instructions emulates bf16, some eighty times as slow.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "fp32"
    flags = {flag for line in lines if line.startswith(("flags", "Features")) for flag in line.split()}
    return "bf16" if flags & BF16_FLAGS else "fp32"


def _fast(scale: Scale) -> Recipe:
    """Ours: measured to reach the same quality for less; sources of the choices in docs/experiments.md."""
    shapes = {
        "tiny": (3, 192, 3, 384, 3_000_000),
        "small": (6, 384, 6, 768, 40_000_000),
        "medium": (12, 768, 12, 1152, 400_000_000),
        "large": (24, 1024, 16, 2624, 2_000_000_000),
    }
    layers, hidden, heads, intermediate, tokens = shapes[scale]
    return Recipe(
        name="fast",
        scale=scale,
        selection=Selection(top_k=30 if scale == "tiny" else 50),
        tokenizer=Tokenizer(vocab_size=8192 if scale == "tiny" else 30_522),
        model=Model(init="counts", layers=layers, hidden=hidden, heads=heads, intermediate=intermediate),
        joint=Joint(budget=Budget(tokens=tokens), batch_rows=32 if scale in ("tiny", "small") else 256),
        finetune=Finetune(optimizer=Optimizer(name="adamw", lr=1e-3 if scale == "tiny" else 3e-4)),
    )


# Joint steps, rho1, rho2 of the release for each task and scale would go here; only what is known is listed.
# Source: example_scripts of the TLM release (SciERC, small): BERT-base shape, 150,000 steps of 256 x 128 tokens
# (512 for IMDB), learning rate 1e-4, weight decay 0.01, warm-up 10,000 steps, rho1 999, rho2 20, masking 15 %;
# finetuning 30,000 steps of 32, learning rate 2e-5, warm-up 3,000 steps, head reset.
PAPER: dict[tuple[str, Scale], dict[str, Any]] = {
    ("sciie", "small"): {"steps": 150_000, "rho1": 999, "rho2": 20, "max_length": 128, "source": "release scripts"},
}


def _paper(scale: Scale) -> Recipe:
    shapes = {
        "tiny": (4, 256, 4, 1024),
        "small": (12, 768, 12, 3072),
        "medium": (12, 768, 12, 3072),
        "large": (24, 1024, 16, 4096),
    }
    layers, hidden, heads, intermediate = shapes[scale]
    steps = 1_500 if scale == "tiny" else PAPER[("sciie", "small")]["steps"]
    optimizer = Optimizer(name="adamw", lr=1e-4, weight_decay=0.01, betas=(0.9, 0.999), warmup=1 / 15)
    return Recipe(
        name="paper",
        scale=scale,
        selection=Selection(top_k=50),
        tokenizer=Tokenizer(vocab_size=30_522),
        model=Model(
            architecture="bert", layers=layers, hidden=hidden, heads=heads, intermediate=intermediate, dropout=0.1
        ),
        joint=Joint(
            budget=Budget(steps=steps),
            batch_rows=256 if scale != "tiny" else 32,
            task_batch=256 if scale != "tiny" else 32,
            rho1=999 if scale != "tiny" else 19,
            rho2=20,
            mask_rate=0.15,
            optimizer=optimizer,
        ),
        finetune=Finetune(
            epochs=1000 if scale != "tiny" else 10,
            max_steps=30_000,
            batch=32,
            reset_head=True,
            optimizer=optimizer.model_copy(update={"lr": 2e-5 if scale != "tiny" else 1e-4, "warmup": 0.1}),
        ),
        checkpoint_steps=1_000 if scale != "tiny" else 200,
    )


def resolve(
    name: str, scale: str, overrides: Mapping[str, Any] | None = None, *, precision: Precision | None = None
) -> Recipe:
    """Return the preset `name` at `scale` with dotted `overrides` ({"joint.rho2": 5}).

    precision: replaces the precision `auto`; by default what this machine's processor computes natively.
    Raises InvalidRecipe that names the invalid key and, for an unknown key, the most similar known key.
    """
    presets = {"fast": _fast, "paper": _paper}
    scales = ("tiny", "small", "medium", "large")
    if name not in presets:
        raise InvalidRecipe(f"unknown recipe '{name}'; known are {', '.join(presets)}")
    if scale not in scales:
        raise InvalidRecipe(f"unknown scale '{scale}'; known are {', '.join(scales)}")
    data = presets[name](scale).model_dump()  # type: ignore[arg-type]
    known = sorted(_keys(data))
    for key, value in (overrides or {}).items():
        _override(data, key, value, known)
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'recipe'}: {e['msg']}" for e in error.errors())
        raise InvalidRecipe(f"the recipe does not hold: {problems}") from error
    _check_trainable(recipe)
    if recipe.precision == "auto":
        recipe = recipe.model_copy(update={"precision": precision or native_precision()})
    if recipe.model.init in OWN_STARTS or {"finetune.optimizer.lr", "finetune.rates"} & set(overrides or ()):
        return recipe
    return recipe.model_copy(update={"finetune": recipe.finetune.for_published()})


def _check_trainable(recipe: Recipe) -> None:
    """Refuse what could not train. Not the model does: an earlier release's records may hold it, and are to be read."""
    for key, part in (("joint", recipe.joint), ("finetune", recipe.finetune)):
        if not all(0 <= beta < 1 for beta in part.optimizer.betas):
            raise InvalidRecipe(
                f"{key}.optimizer.betas: {list(part.optimizer.betas)} do not hold; each is at least 0 and below 1"
            )
    joint = recipe.joint
    if joint.enabled and recipe.selection.selector == "none" and not (joint.task_loss or joint.mlm_on_task):
        raise InvalidRecipe(
            "with selection.selector 'none' the joint stage trains on task text alone, so joint.task_loss or "
            "joint.mlm_on_task must be true, or joint.enabled false"
        )


def _keys(data: Mapping[str, Any], prefix: str = "") -> list[str]:
    """All dotted keys of the leaves."""
    found = []
    for key, value in data.items():
        found.extend(_keys(value, f"{prefix}{key}.") if isinstance(value, dict) else [prefix + key])
    return found


def _override(data: dict[str, Any], key: str, value: Any, known: list[str]) -> None:
    if key in ("name", "scale") or key not in known:
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
        hint = f"; did you mean '{near[0]}'?" if near else f"; known are {', '.join(known)}"
        raise InvalidRecipe(f"unknown recipe key '{key}'{hint}", key=key)
    *parents, leaf = key.split(".")
    target = data
    for parent in parents:
        target = target[parent]
    if parents and parents[-1] == "budget" and value is not None:
        target.update(dict.fromkeys(target))  # another unit replaces the preset's budget
    target[leaf] = value
