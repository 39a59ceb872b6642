"""The keys of a recipe with their values and meanings, as the command line and the dashboard show them."""

from __future__ import annotations

from collections.abc import Iterator
from types import NoneType
from typing import Annotated, Literal, NamedTuple, get_args, get_origin

from pydantic import BaseModel

from tlm_core.training.recipe import Recipe


class RecipeKey(NamedTuple):
    """A recipe key that an override can change, such as `finetune.epochs`, with its value in a recipe.

    choices: all valid values if they are words, else (). number: whether all valid values are numbers or null.
    """

    key: str
    value: object
    meaning: str
    choices: tuple[str, ...]
    number: bool


def recipe_keys(part: BaseModel, prefix: str = "") -> Iterator[RecipeKey]:
    """Yield the keys of `part`, a recipe or the part of a recipe at `prefix` ("joint."), in the order of definition."""
    for name, field in type(part).model_fields.items():
        value = getattr(part, name)
        if isinstance(value, BaseModel):
            yield from recipe_keys(value, f"{prefix}{name}.")
        elif not (isinstance(part, Recipe) and name in ("name", "scale")):
            types = set(_types(field.annotation))
            words = (*sorted(t for t in types if isinstance(t, str)), *(("true", "false") if bool in types else ()))
            choices = () if int in types else words
            yield RecipeKey(prefix + name, value, field.description or "", choices, types <= {int, float, NoneType})


def _types(annotation: object) -> Iterator[object]:
    """Yield the types and the literal values in an annotation: `int | Literal["auto"]` yields int and "auto"."""
    if get_origin(annotation) is Annotated:
        yield from _types(get_args(annotation)[0])
    elif get_origin(annotation) is Literal:
        yield from get_args(annotation)
    elif get_args(annotation) and get_origin(annotation) is not tuple:
        for part in get_args(annotation):
            yield from _types(part)
    else:
        yield annotation
