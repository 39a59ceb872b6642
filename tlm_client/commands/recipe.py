"""What a recipe contains: keys."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated

import typer
from pydantic import BaseModel

from tlm_client.console import AsJson, command_group, print_result, table
from tlm_core.training.recipe import Recipe, leaves, resolve

group = command_group(__doc__)


@group.command("keys")
def list_keys(
    words: Annotated[list[str] | None, typer.Argument(metavar="[WORD…]", help="Only keys with these words.")] = None,
    recipe: Annotated[str, typer.Option(help="fast or paper.")] = "fast",
    scale: Annotated[str, typer.Option(help="quick, tiny, small, medium or large.")] = "tiny",
    as_json: AsJson = False,
) -> None:
    """List the keys that --set changes, with their values and what they mean.

    tlm recipe keys finetune
    tlm recipe keys --scale small --json
    """
    values = leaves(resolve(recipe, scale).model_dump(mode="json"))
    meanings = dict(_meanings(Recipe))
    rows = [
        (key, json.dumps(value), meanings.get(key, ""))
        for key, value in values.items()
        if key not in ("name", "scale") and all(word in f"{key} {meanings.get(key, '')}" for word in words or ())
    ]
    value = [{"key": key, "value": values[key], "meaning": meaning} for key, _, meaning in rows]
    print_result(value, table(("key", "value", "meaning"), rows), as_json=as_json)


def _meanings(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield each dotted key of a model with its description."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _meanings(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name, field.description or ""
