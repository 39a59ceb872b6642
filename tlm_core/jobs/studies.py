"""The plans of learning curves and of pruning: they fan out over sizes, seeds, models and masks, and gather again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tlm_core.compression.masks import Mask, removals
from tlm_core.errors import InvalidRequest
from tlm_core.jobs.nodes import Node, Place, Plan, side_by_side, tried
from tlm_core.jobs.options import LearningCurve, Prune, family, size_name
from tlm_core.jobs.spec import JobRecord, JobSpec
from tlm_core.training.params import reproducible, stage_params
from tlm_core.training.recipe import OWN_STARTS, Recipe


def validate_node(job: JobRecord, number: int = 0) -> Node:
    """The node with which every plan begins: a data set of the job, by default its first, becomes a task."""
    data = job.resolved.data[number]
    params, fixed = {"options": data.options}, {"dataset": data.ref.digest}
    name = f"validate.{number}" if number else "validate"
    return Node(name, "validate", Place.COORDINATOR, params=params, fixed=fixed)


def prune(job: JobRecord, dense: Plan) -> Plan:
    """The dense model as `train` makes it, its importance, a ticket for each kind, level and seed, the choice."""
    options, recipe, seeds = job.spec.prune or Prune(), job.resolved.recipe, job.spec.seeds
    nodes = [node for node in dense.nodes if node.name != dense.model]
    fan: list[Node] = []
    gathered = {"prepared": "prepare", "task": "validate", "evaluate": "evaluate"}
    for seed in seeds:
        inputs = {"prepared": "prepare", "finetune": f"finetune.s{seed}"}
        params = {"as_published": options.as_published}
        fan.append(Node(f"importance.s{seed}", "importance", Place.WORKERS, params=params, inputs=inputs))
        gathered[f"finetune.s{seed}"] = f"finetune.s{seed}"
    for which in options.tickets:
        for level in options.levels:
            for seed in seeds:
                name = f"ticket.{which}.l{level:g}.s{seed}"
                asked = {**stage_params("finetune", recipe, seed), "which": which, "level": level}
                inputs = {"prepared": "prepare", "importance": f"importance.s{seed}"}
                if recipe.joint.enabled:
                    inputs["joint"] = f"joint.s{seed}"
                node = Node(name, "ticket", Place.WORKERS, params=asked, inputs=inputs)
                fan.extend(tried(node, recipe.finetune.rates))
                gathered[name] = name
    whole = {"tickets": options.tickets, "levels": options.levels, "seeds": seeds, **stage_params("export", recipe)}
    last = Node("phases", "phases", Place.WORKERS, params=_plain(whole), inputs=gathered, group=gather(seeds))
    nodes = before_training(nodes, tickets_fit(job, recipe, options.levels))
    return Plan((*nodes, *side_by_side(fan, seeds, "tickets"), last), report="phases", model="phases")


def gather(seeds: Sequence[int]) -> str:
    """The group of a last node that waits for groups of other seeds."""
    return "gather" if len(seeds) > 1 else "main"


def tickets_fit(
    job: JobRecord, recipe: Recipe, levels: Sequence[float], masks: Sequence[Mapping[str, Any]] = ()
) -> Node | None:
    """A check of a published encoder and of the tickets against it; None where `check_kind` could make it at once."""
    if recipe.model.init in OWN_STARTS:
        return None
    params = {"init": recipe.model.init, "levels": list(levels), "masks": list(masks)}
    # It reads no data, but only jobs on the same data may share an artifact: with the last of them it is deleted.
    fixed = {"dataset": job.resolved.dataset.digest}
    return Node("tickets_fit", "tickets_fit", Place.WORKERS, params=params, fixed=fixed)


def before_training(nodes: Sequence[Node], check: Node | None) -> list[Node]:
    """The nodes, with the check in front of the first that runs on workers."""
    first = next(number for number, node in enumerate(nodes) if node.place is Place.WORKERS)
    return [*nodes[:first], *([check] if check else []), *nodes[first:]]


def learning_curve(job: JobRecord) -> Plan:
    """For each size and seed a subset, on it each model, and all of them gathered in one curve."""
    options, seeds = job.spec.learning_curve or LearningCurve(), job.spec.seeds
    sizes = sorted(options.sizes, key=lambda size: (size == 1, size))  # 1 is the whole
    asked = {"sizes": options.sizes, "seeds": seeds}
    nodes = [validate_node(job), *_pretrained_fits(job, options)]
    nodes.append(Node("sizes", "sizes", Place.COORDINATOR, params=_plain(asked), inputs={"task": "validate"}))
    gathered = {"sizes": "sizes"}
    for size in sizes:
        for seed in seeds:
            point = _Point(job, options, size, seed)
            nodes.extend(point.nodes())
            gathered |= {f"evaluate.{model}{point.end}": f"evaluate.{model}{point.end}" for model in options.models}
            if size == options.largest:
                gathered |= point.largest()
    params = {"models": options.models, "seeds": seeds, "margin": options.margin}
    nodes = side_by_side(nodes, seeds, "curve")
    nodes.append(
        Node(
            "curve",
            "curve",
            Place.WORKERS,
            params=_plain(params),
            inputs=gathered,
            gathers=True,
            group=gather(seeds),
        )
    )
    # Subsets first: what cannot be had is told before anything is trained.
    nodes.sort(key=lambda node: node.place is not Place.COORDINATOR)
    return Plan(tuple(nodes), report="curve", model="curve")


def _pretrained_fits(job: JobRecord, options: LearningCurve) -> list[Node]:
    """A check of the curve's published encoder for each seed: its workers make it before they train anything."""
    if options.pretrained is None:
        return []
    check = tickets_fit(job, pretrained(job.resolved.recipe, options), ())
    return [replace(check, name=f"pretrained_fits.s{seed}") for seed in job.spec.seeds] if check else []


class _Point:
    """The nodes of one size and seed."""

    def __init__(self, job: JobRecord, options: LearningCurve, size: float, seed: int) -> None:
        self._job = job
        self._options = options
        self._size = size
        self._seed = seed
        self.end = f".n{size_name(size)}.s{seed}"

    def nodes(self) -> list[Node]:
        params = {"size": self._size, "seed": self._seed}
        inputs = {"task": "validate", "sizes": "sizes"}
        found = [Node(f"subset{self.end}", "subset", Place.COORDINATOR, params=params, inputs=inputs)]
        recipe = self._job.resolved.recipe
        alone = task_only(recipe)
        with_text = {"tlm", "bilstm_tlm"} & set(self._options.models)
        found.append(self._prepare("own", alone, {}))
        if with_text:
            found += self._retrieved(recipe)
        if "pretrained" in self._options.models:
            found.append(self._prepare("pretrained", pretrained(alone, self._options), {}))
        for model in self._options.models:
            found += self._model(model, recipe, alone)
        return found

    def largest(self) -> dict[str, str]:
        """What the last stage measures and exports: each model of the largest size, and its tokens."""
        found = {}
        for model in self._options.models:
            found[f"prepared.{model}.s{self._seed}"] = self._prepared(model)
            found[f"trained.{model}.s{self._seed}"] = f"finetune.{model}{self.end}"
        return found

    def _prepared(self, model: str) -> str:
        return f"prepare.{family(model)}{self.end}"

    def _prepare(self, kind: str, recipe: Recipe, more: Mapping[str, str]) -> Node:
        inputs = {"task": f"subset{self.end}", **more}
        params = stage_params("prepare", recipe)
        return Node(f"prepare.{kind}{self.end}", "prepare", Place.WORKERS, params=params, inputs=inputs)

    def _retrieved(self, recipe: Recipe) -> list[Node]:
        """Selection, tokens and joint stage of TLM. Queries are the subset's texts, or all texts if so asked."""
        resolved = self._job.resolved
        task = "validate" if self._options.unlabelled else f"subset{self.end}"
        select = Node(
            f"select{self.end}",
            "select",
            Place.RETRIEVER,
            params={"selection": recipe.selection.model_dump(mode="json"), "seed": 0},
            inputs={"task": task},
            fixed={"corpus": f"{resolved.corpus_name}@{resolved.corpus_version}"},
        )
        joint = Node(
            f"joint{self.end}",
            "joint",
            Place.WORKERS,
            params=stage_params("joint", recipe, self._seed),
            inputs={"prepared": f"prepare.tlm{self.end}"},
            reusable=reproducible("joint", recipe),
        )
        return [select, self._prepare("tlm", recipe, {"selection": f"select{self.end}"}), joint]

    def _model(self, model: str, recipe: Recipe, alone: Recipe) -> list[Node]:
        """Training and test of one model."""
        lstm = model.startswith("bilstm")
        inputs = {"prepared": self._prepared(model)}
        if model in ("tlm", "bilstm_tlm"):
            inputs["joint"] = f"joint{self.end}"
        name = f"finetune.{model}{self.end}"
        if lstm:
            params = lstm_params(recipe, self._options, self._seed)
            trained = [Node(name, "bilstm", Place.WORKERS, params=params, inputs=inputs)]
        else:
            used = {"tlm": recipe, "pretrained": pretrained(alone, self._options)}.get(model, alone)
            params = stage_params("finetune", used, self._seed)
            node = Node(name, "finetune", Place.WORKERS, params=params, inputs=inputs)
            trained = tried(node, used.finetune.rates)
        tested = Node(
            f"evaluate.{model}{self.end}",
            "evaluate_bilstm" if lstm else "evaluate",
            Place.WORKERS,
            params=stage_params("evaluate", recipe),
            inputs={
                "prepared": self._prepared(model),
                "task": f"subset{self.end}",
                f"finetune.s{self._seed}": name,
            },
        )
        return [*trained, tested]


def check_kind(spec: JobSpec, recipe: Recipe, tickets: Mapping[str, dict[str, Any]] | None = None) -> None:
    """Refuse before anything runs what the job's kind cannot do with this recipe. Raises InvalidRequest.

    tickets: data set → mask, of those that the request names by their job.
    """
    if recipe.profile and spec.kind not in ("train", "prune"):
        raise InvalidRequest(
            f"a job of kind '{spec.kind}' keeps no trace of its training; leave 'profile' out, or set it in a job of "
            "kind 'train' or 'prune'"
        )
    if (options := spec.share_tickets) is not None:
        names = (spec.dataset, *options.others)
        if strange := sorted(options.tickets.keys() - set(names)):
            raise InvalidRequest(f"there is a ticket for '{strange[0]}', which is none of the tasks {', '.join(names)}")
        if recipe.finetune.rates:
            raise InvalidRequest(
                "tickets are found and shared with the same settings, so 'share_tickets' finetunes at a single rate; "
                "give it as 'finetune.optimizer.lr' and leave 'finetune.rates' out"
            )
    if recipe.model.init in OWN_STARTS:  # the shape of a published encoder is not known here, see `tickets_fit`
        _check_tickets(spec, recipe, tickets or {})
    if spec.kind == "learning_curve":
        models = (spec.learning_curve or LearningCurve()).models
        retrieves = recipe.selection.needs_corpus and recipe.joint.enabled
        if {"tlm", "bilstm_tlm"} & set(models) and not retrieves:
            raise InvalidRequest(
                "the models 'tlm' and 'bilstm_tlm' of a learning curve retrieve from a corpus and train on it; give a "
                "corpus and leave 'selection.selector' and 'joint.enabled' at that, or take these models out"
            )


def _check_tickets(spec: JobSpec, recipe: Recipe, tickets: Mapping[str, dict[str, Any]]) -> None:
    layers, heads = recipe.model.layers, recipe.model.heads
    levels = (spec.prune or Prune()).levels if spec.kind == "prune" else ()
    for level in levels:
        removals(level, layers, heads)
    if (options := spec.share_tickets) is not None:
        for ticket in (options.ticket(name, tickets) for name in (spec.dataset, *options.others)):
            if "mask" in ticket:
                Mask.from_dict(ticket["mask"]).check(layers, heads)
            else:
                removals(ticket["level"], layers, heads)


def recipes_of(spec: JobSpec, recipe: Recipe) -> list[Recipe]:
    """Every recipe that the job trains by."""
    options = spec.learning_curve
    return [recipe, pretrained(recipe, options)] if options and options.pretrained else [recipe]


def task_only(recipe: Recipe) -> Recipe:
    """The same encoder trained on the task alone."""
    joint = recipe.joint.model_copy(update={"enabled": False})
    selection = recipe.selection.model_copy(update={"selector": "none"})
    return recipe.model_copy(update={"joint": joint, "selection": selection})


def pretrained(alone: Recipe, options: LearningCurve) -> Recipe:
    """Finetuning of the published encoder that the request names, by the same rule but for too high a rate."""
    model = alone.model.model_copy(update={"init": options.pretrained})
    tokenizer = alone.tokenizer.model_copy(update={"source": options.pretrained})
    finetune = alone.finetune.for_published()
    return alone.model_copy(update={"model": model, "tokenizer": tokenizer, "finetune": finetune})


def lstm_params(recipe: Recipe, options: LearningCurve, seed: int) -> dict[str, Any]:
    """Epochs, batch and validation as finetuning has them; the optimiser and the shape are the BiLSTM's own."""
    part = recipe.finetune.model_dump(mode="json", exclude={"rates"})
    part["optimizer"] |= {"name": "adamw", "lr": options.lstm.lr}
    lstm = options.lstm.model_dump(mode="json", exclude={"lr"})
    whole = {"finetune": part, "bilstm": lstm, "precision": recipe.precision}
    return {"recipe": {**whole, "checkpoint_steps": recipe.checkpoint_steps}, "seed": seed}


def _plain(params: Mapping[str, Any]) -> dict[str, Any]:
    """Lists for tuples, as JSON gives them back."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in params.items()}
