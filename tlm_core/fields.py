"""Validation errors of pydantic, with the names of the valid fields for each unknown field."""

from __future__ import annotations

from typing import Any

from pydantic import ModelWrapValidatorHandler, ValidationError, model_validator
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError


def _name_valid_fields(cls: Any, value: Any, handler: ModelWrapValidatorHandler[Any]) -> Any:
    try:
        return handler(value)
    except ValidationError as error:
        known = list(cls.__pydantic_fields__)
        raise ValidationError.from_exception_data(error.title, [_with(known, e) for e in error.errors()]) from error


def _with(known: list[str], error: ErrorDetails) -> InitErrorDetails:
    """Return a copy of `error` with `known`, the names of the valid fields. An error of a nested model has its own."""
    context = ({"known": known} if len(error["loc"]) == 1 else {}) | error.get("ctx", {})
    kind = PydanticCustomError(error["type"], error["msg"], context)
    return InitErrorDetails(type=kind, loc=error["loc"], input=error["input"])


# Assign this validator to an attribute of a pydantic class. Errors about unknown fields then list the valid fields.
names_valid_fields = model_validator(mode="wrap")(_name_valid_fields)
