"""The work of a job, counted before it runs: steps, tokens, FLOPs and bytes. This module does not import torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from tlm_core.jobs.plan import Node, Plan
from tlm_core.linear.params import CANDIDATES, MOST_LABELED, MOST_PIECES, ROUNDS, TUNED_ROWS, SelfTrainParams, most_fits
from tlm_core.studies.params import SubsetParams
from tlm_core.training import flops
from tlm_core.training.architectures import Shape, architecture_of, scratch_shape
from tlm_core.training.memory import MICRO_ROWS, training_bytes
from tlm_core.training.params import FinetuneParams, JointParams, PrepareParams, SeedsParams, TuneParams
from tlm_core.training.recipe import AUTO_LENGTHS, OWN_STARTS, Model, Recipe

_PASSAGE_BYTES = 337  # mean, from `make demo`
# Work that does not depend on the texts, such as loading libraries and files, in the units of `work_of`.
_ROWS_TO_VALIDATE = 1e4
_UNITS_TO_BASELINE, _UNITS_TO_REFIT = 2.6e8, 2.6e7
_UNITS_TO_COUNT = 1_700  # to count the n-grams of a token
# `prepare` learns the vocabulary mostly from the first tokens. So each first token costs as much as five others.
_FIRST_TOKENS, _FIRST_TOKEN_COST = 5e5, 5
_USUAL_AMOUNT = 10.0  # pieces per train row, if validation chooses self-training


@dataclass(frozen=True)
class Texts:
    """The sizes of a task's texts. rows: split → number of rows. vocab: size of the vocabulary, None while unknown.

    - windows: mean number of windows of a text. An epoch of training reads one window, and a prediction reads all.
    - tokens: mean number of tokens in a window. labels: number of labels, 1 for regression.
    - passages: number of selected passages. passage_tokens: mean number of tokens in a passage.
    - searched: number of passages in the corpus.
    - auto_length: maximum number of tokens in a window if the recipe's length is `auto`.
    """

    rows: Mapping[str, int]
    tokens: float
    labels: int
    vocab: int | None
    passages: int = 0
    passage_tokens: float = 196.0
    searched: int = 0
    windows: float = 1.0
    auto_length: int = AUTO_LENGTHS[0]

    @property
    def task_tokens(self) -> float:
        """Tokens of all task texts."""
        return sum(self.rows.values()) * self.windows * self.tokens


@dataclass(frozen=True)
class Work:
    """The work of a node. units: proportional to the node's time (see `work_of`). tokens, flops: None if unknown."""

    units: float
    steps: float = 0.0
    tokens: float | None = None
    flops: float | None = None


def length_of(model: Model, texts: Texts) -> int:
    """Return the maximum length of the model's input in tokens."""
    return texts.auto_length if model.max_length == "auto" else model.max_length


def shape_of(model: Model, texts: Texts) -> Shape | None:
    """Return the shape of a model, or None if it uses a published encoder or tokenizer, whose size is unknown."""
    if model.init not in OWN_STARTS or texts.vocab is None:
        return None
    model = model.model_copy(update={"max_length": length_of(model, texts)})
    return scratch_shape(model, texts.vocab, texts.labels)


def texts_of(plan: Plan, node: Node, texts: Sequence[Texts]) -> Texts:
    """Return the text sizes of a node's dataset, with only the train rows that the node uses."""
    path = [*plan.behind(node.name), node]
    chosen = texts[next((node.dataset for node in path if node.dataset is not None), 0)]
    sizes = {node.params.size for node in path if isinstance(node.params, SubsetParams)}
    if len(sizes) != 1:
        return chosen
    (size,), train = sizes, chosen.rows["train"]
    return replace(chosen, rows={**chosen.rows, "train": round(size if size > 1 else size * train)})


def work_of(node: Node, texts: Texts) -> Work | None:
    """Return the work of a node, or None if the size of its encoder is unknown. One unit of work is, by stage:

    - training: a FLOP, or a token for models other than transformers
    - `validate`: a row
    - `baseline`, `self_train` and `refit_linear`: see `_fit_units`
    - `select`: a comparison of a train row with a passage of the corpus
    - preparation and evaluation: a token
    - other stages: the whole node
    """
    params, rows = node.params, texts.rows
    if isinstance(params, JointParams):
        shape = shape_of(params.model, texts)
        return _joint_work(params, shape, texts) if shape else None
    if isinstance(params, TuneParams):
        labeled = rows["train"] + (rows.get("validation", 0) if node.stage.name == "refit" else 0)
        return _finetune_work(params, texts, labeled)
    if isinstance(params, SelfTrainParams):
        return Work(_self_train_units(params.amounts, texts))
    match node.stage.name:
        case "validate":
            return Work(_ROWS_TO_VALIDATE + sum(rows.values()))
        case "baseline":
            fits = most_fits(rows["train"], 2 if texts.labels > 1 else 1)
            features = 2 * _UNITS_TO_COUNT * texts.task_tokens  # features with and without `start_words`
            return Work(_UNITS_TO_BASELINE + features + fits * _fit_units(min(0.8 * rows["train"], TUNED_ROWS), texts))
        case "refit_linear":
            labeled = rows["train"] + rows.get("validation", 0)
            units = _UNITS_TO_REFIT + _UNITS_TO_COUNT * texts.task_tokens + _fit_units(labeled, texts)
            # Validation chooses the amount during the job. With the amount 0, only the linear model is fitted again.
            again = _self_train_units((_USUAL_AMOUNT,), texts) if "self_train" in node.inputs else 0.0
            return Work(units + again)
        case "select":
            return Work(rows["train"] * max(texts.searched, 1))
        case "prepare":
            tokens = texts.task_tokens + texts.passages * texts.passage_tokens
            return Work(tokens + (_FIRST_TOKEN_COST - 1) * min(tokens, _FIRST_TOKENS))
    if isinstance(params, SeedsParams):
        tested = rows.get("validation", 0) + rows.get("test", 0)
        return Work(len(params.seeds) * tested * texts.windows * texts.tokens)
    return Work(1.0)


def _fit_units(rows: float, texts: Texts) -> float:
    """Return the units of work to fit a linear model on `rows` texts: one classifier per label, or one for two labels.

    The number of passes over the rows grows about as the square root of `rows`, as docs/results.md shows.
    """
    return rows**1.5 * texts.windows * texts.tokens * (texts.labels if texts.labels > 2 else 1)


def _self_train_units(amounts: Iterable[float], texts: Texts) -> float:
    """Return the units of work to label the pieces of all passages, and to fit a linear model for each of `amounts`.

    amounts: numbers of pieces per train row that self-training tries.
    """
    rows, length = texts.rows["train"], texts.windows * texts.tokens
    pieces = min(texts.passages * texts.passage_tokens / length, MOST_PIECES)
    totals = [min(amount * rows, MOST_LABELED, pieces) for amount in amounts if amount]
    counted = pieces + min(CANDIDATES * max(totals, default=0), pieces) + sum(texts.rows.values())
    students = sum(ROUNDS * _fit_units(rows + total, texts) for total in totals)
    return _UNITS_TO_REFIT + _UNITS_TO_COUNT * counted * length + students


def _joint_work(params: JointParams, shape: Shape, texts: Texts) -> Work:
    """Return the work of the joint stage of one seed. A budget in seconds counts as one step."""
    joint, optimizer = params.joint.at_length(shape.max_length, params.model), params.optimizer.name
    rate = (joint.mask_rate + (joint.mask_rate if joint.mask_rate_end is None else joint.mask_rate_end)) / 2
    task, retrieved = joint.task_batch * texts.tokens, float(joint.batch_rows * shape.max_length)
    # The number of texts whose words a step predicts. A passage that continues in the next row counts again.
    described = joint.batch_rows + retrieved / texts.passage_tokens
    words = (joint.task_batch * joint.mlm_on_task, described) if joint.bag_of_words else (0, 0)
    masked = rate * task if joint.mlm_on_task else 0.0
    on_task = _step(shape, task, masked, joint.task_batch * joint.task_loss, optimizer, words[0])
    on_passages = _step(shape, retrieved, rate * retrieved, 0, optimizer, words[1])
    # A cycle has rho1 steps on passages and one step on the task (paper section 3.2).
    share = 1 / (joint.rho1 + 1) if joint.task_loss or joint.mlm_on_task else 0.0
    share = share if texts.passages else 1.0
    tokens, step = share * task + (1 - share) * retrieved, share * on_task + (1 - share) * on_passages
    ((unit, amount),) = ((unit, value) for unit, value in joint.budget if value is not None)
    steps = math.ceil({"steps": amount, "tokens": amount / tokens, "flops": amount / step, "seconds": 1}[unit])
    return Work(steps * step, steps, steps * tokens, steps * step)


def _finetune_work(params: TuneParams, texts: Texts, rows: int) -> Work | None:
    """Return the work to finetune one seed on `rows` texts without validation, or None for a model of unknown size."""
    steps, batch = params.finetune.steps(rows), params.finetune.batch
    tokens = steps * batch * texts.tokens
    if not isinstance(params, FinetuneParams):
        return Work(tokens, steps, tokens)
    if (shape := shape_of(params.model, texts)) is None:
        return None
    total = steps * _step(shape, batch * texts.tokens, 0.0, batch, params.optimizer.name)
    return Work(total, steps, tokens, total)


def _step(shape: Shape, tokens: float, masked: float, documents: int, optimizer: str, described: float = 0.0) -> float:
    """Return the FLOPs of a training step.

    The step reads `tokens` tokens in rows of full length. It predicts `masked` masked tokens, the labels of `documents`
    texts, and the words of `described` texts.
    """
    row = flops.forward(shape, 1, shape.max_length, 0, 0)
    head = flops.forward(shape, 0, shape.max_length, 1, 0)
    task = flops.forward(shape, 0, shape.max_length, 0, 1)
    words = flops.forward(shape, 0, shape.max_length, 0, 0, 1)
    rows = math.ceil(tokens / shape.max_length)
    products = rows * row + masked * head + documents * task + described * words
    update = flops.newton_schulz(architecture_of(shape).matrices(shape)) if optimizer == "muon" else 0.0
    return flops.FORWARD_AND_BACKWARD * products + update


def memory_bytes(recipe: Recipe, texts: Texts) -> int | None:
    """Return the bytes of memory that the joint stage needs, or None if the size of the encoder is unknown."""
    if (shape := shape_of(recipe.model, texts)) is None:
        return None
    rows = min(recipe.joint.at_length(length_of(recipe.model, texts), recipe.model).batch_rows, MICRO_ROWS)
    masked = recipe.joint.logits_per_token if recipe.joint.enabled else 0.0
    return training_bytes(shape, architecture_of(shape).parameters(shape), rows, masked)


def disk_bytes(plan: Plan, texts: Sequence[Texts]) -> int | None:
    """Return the bytes of a job's artifacts, or None if the size of an encoder is unknown.

    Artifacts hold passages, tokens, and parameters in float32. The export holds the parameters twice.
    """
    total = exported = 0.0
    for node in plan.nodes:
        own, params = texts_of(plan, node, texts), node.params
        if isinstance(params, JointParams | FinetuneParams):
            if (shape := shape_of(params.model, own)) is None:
                return None
            architecture = architecture_of(shape)
            exported = 4 * architecture.exported_parameters(shape)
            total += 4 * architecture.parameters(shape) if isinstance(params, JointParams) else exported
        elif isinstance(params, PrepareParams):
            vocab, tokens = own.vocab or 0, own.task_tokens + own.passages * own.passage_tokens
            total += own.passages * _PASSAGE_BYTES + tokens * (2 if vocab < 2**16 else 4)
            total += 4 * vocab * (params.vector_width or 0)
        elif node.stage.name in ("choose", "export"):
            total += exported * (2 if node.stage.name == "export" else 1)
    return round(total)
