"""What a job's kind cannot do with a recipe."""

from __future__ import annotations

from collections.abc import Mapping

from tlm_core.compression.masks import Mask, removals
from tlm_core.errors import InvalidRequest
from tlm_core.jobs.options import LearningCurve, Prune
from tlm_core.jobs.spec import JobSpec
from tlm_core.kinds.learning_curve import pretrained
from tlm_core.training.recipe import OWN_STARTS, Recipe


def check_kind(spec: JobSpec, recipe: Recipe, tickets: Mapping[str, Mask] | None = None) -> None:
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
    if recipe.model.init in OWN_STARTS:  # the shape of a published encoder is not known here, see `check_encoder`
        _check_tickets(spec, recipe, tickets or {})
    if spec.kind == "learning_curve":
        models = (spec.learning_curve or LearningCurve()).models
        retrieves = recipe.selection.needs_corpus and recipe.joint.enabled
        if {"tlm", "bilstm_tlm"} & set(models) and not retrieves:
            raise InvalidRequest(
                "the models 'tlm' and 'bilstm_tlm' of a learning curve retrieve from a corpus and train on it; give a "
                "corpus and leave 'selection.selector' and 'joint.enabled' at that, or take these models out"
            )


def _check_tickets(spec: JobSpec, recipe: Recipe, tickets: Mapping[str, Mask]) -> None:
    layers, heads = recipe.model.layers, recipe.model.heads
    levels = (spec.prune or Prune()).levels if spec.kind == "prune" else ()
    for level in levels:
        removals(level, layers, heads)
    if (options := spec.share_tickets) is not None:
        pinned = options.model_copy(update={"tickets": options.tickets | dict(tickets)})
        for ticket in (pinned.ticket(name) for name in (spec.dataset, *options.others)):
            if isinstance(ticket, Mask):
                ticket.check(layers, heads)
            else:
                removals(ticket, layers, heads)


def recipes_of(spec: JobSpec, recipe: Recipe) -> list[Recipe]:
    """Every recipe that the job trains by."""
    options = spec.learning_curve
    return [recipe, pretrained(recipe, options)] if options and options.pretrained else [recipe]
