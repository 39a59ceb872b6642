"""Settings of recipes: keys.

tlm recipe keys finetune
tlm recipe keys --scale small
"""

from __future__ import annotations

import json
from typing import Annotated

import typer

from tlm_client.console import command_group, print_result, table
from tlm_core.errors import InvalidRecipe, NotFound
from tlm_core.training.recipe import resolve
from tlm_core.training.recipe_keys import recipe_keys

group = command_group(__doc__)


@group.command("keys")
def list_keys(
    words: Annotated[list[str] | None, typer.Argument(metavar="[WORD…]", help="Only keys with these words.")] = None,
    recipe: Annotated[str, typer.Option(help="fast or paper.")] = "fast",
    scale: Annotated[str, typer.Option(help="quick, tiny, small, medium or large.")] = "tiny",
) -> None:
    """List the keys that --set changes, with their values and what they mean.

    tlm recipe keys finetune
    tlm recipe keys --scale small --json
    """
    if scale == "instant":
        raise InvalidRecipe(
            "The scale 'instant' trains only the linear model, which has no recipe. Choose another scale."
        )
    entries = [
        entry
        for entry in recipe_keys(resolve(recipe, scale))
        if all(word.casefold() in f"{entry.key} {entry.meaning}".casefold() for word in words or ())
    ]
    if not entries:
        raise NotFound(f"No recipe key or meaning contains {' and '.join(words or ())}. `tlm recipe keys` lists all.")
    rows = [(entry.key, json.dumps(entry.value), entry.meaning) for entry in entries]
    title = f"Values of the recipe {recipe} at the scale {scale}"
    value = [{"key": entry.key, "value": entry.value, "meaning": entry.meaning} for entry in entries]
    print_result(value, table(("key", "value", "meaning"), rows, title=title))
