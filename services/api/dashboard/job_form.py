"""The form for a new job. `Kind.fields` defines the fields for the options of each kind."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Form, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import PydanticUndefined

from services.common.bodies import UnsupportedJSON, check_json
from services.common.problem import validation_problem
from tlm_core.errors import InvalidRequest
from tlm_core.jobs.spec import FROM_JOB, JobSpec, KindOptions
from tlm_core.kinds import KINDS
from tlm_core.kinds.kind import FormField, Kind
from tlm_core.tables.records import without_surrogates

_MAX_TEXT = 100_000


@dataclass(frozen=True)
class Preset:
    """A choice of scale and seeds for a new job."""

    summary: str
    scale: str
    seeds: str = "0, 1, 2"


PRESETS = {
    "instant": Preset("the linear model alone; start here", "instant"),
    "quick": Preset("three seeds of a small encoder, on a CPU", "quick"),
    "best": Preset("three seeds at the scale tiny; the highest mean score over our tasks", "tiny"),
}


class CommonFields(BaseModel):
    """The form fields for jobs of every kind. key: a random idempotency key. Each shown form has a new key."""

    model_config = ConfigDict(frozen=True)

    name: str = Field("", max_length=200)
    kind: str = Field("train", max_length=40)
    dataset: str = Field("", max_length=200)
    corpus: str = Field("", max_length=200)
    scale: str = Field("tiny", max_length=20)
    recipe: str = Field("fast", max_length=20)
    seeds: str = Field("0, 1, 2", max_length=400)
    overrides: str = Field("", max_length=10_000)
    metadata: str = Field("", max_length=10_000)
    priority: str = Field("0", max_length=10)
    minutes: str = Field("", max_length=20)
    key: str = Field("", max_length=200)


class JobForm(CommonFields):
    """The values of the form. options: `kind.option` → the text of its field, or the texts of the selected choices."""

    options: dict[str, list[str]] = {}

    @classmethod
    def fresh(cls, dataset: str, corpus: str, preset: Preset) -> JobForm:
        """Return a form with the values of a preset and the default options of every kind."""
        options = {
            f"{kind.name}.{field.option}": _show(field, kind.options.model_fields[field.option].get_default())
            for kind in KINDS.values()
            for field in kind.fields
        }
        return cls(dataset=dataset, corpus=corpus, scale=preset.scale, seeds=preset.seeds, options=options)

    def texts(self, kind: Kind[KindOptions], field: FormField) -> list[str]:
        """Return the texts in the form field of an option, or [] if the form lacks the field."""
        return self.options.get(f"{kind.name}.{field.option}", [])

    def spec(self) -> JobSpec:
        """Return the form as a JobSpec. Raises InvalidRequest with the name of the invalid field.

        The scale `instant` uses no corpus and one seed, whatever these fields contain.
        """
        instant, seeds = self.scale == "instant", _parse_seeds(self.seeds)
        overrides = parse_lines(self.overrides, "Overrides", "finetune.epochs = 5")
        values: dict[str, object] = {
            "name": self.name.strip() or None,
            "kind": self.kind,
            "dataset": self.dataset,
            "corpus": None if instant else self.corpus or None,
            "scale": self.scale,
            "recipe": self.recipe,
            "seeds": seeds[:1] if instant else seeds,
            "overrides": overrides,
            "metadata": parse_lines(self.metadata, "Labels", "team = search", texts=True),
            "priority": _parse_number(self.priority or "0", "Priority"),
            "max_runtime_seconds": 60 * _parse_number(self.minutes, "Time limit") if self.minutes.strip() else None,
        }
        if kind := KINDS.get(self.kind):
            values["options"] = options = self._options(kind)
            if kind.names_source(options):
                values = {name: value for name, value in values.items() if name not in FROM_JOB}
        try:
            return JobSpec.model_validate(values)
        except ValidationError as error:
            raise InvalidRequest(validation_problem(error.errors(), "body").detail) from error

    def _options(self, kind: Kind[KindOptions]) -> dict[str, object]:
        """Return option → value, for the fields of a kind that are not blank."""
        options = {}
        for field in kind.fields:
            texts = self.texts(kind, field)
            if any(len(text) > _MAX_TEXT for text in texts):
                raise InvalidRequest(f"{field.label}: the text is longer than {_MAX_TEXT} characters. Shorten it.")
            value = _parse(field, texts, self.dataset)
            if value is not None:
                options[field.option] = value
        return options


async def read_form(request: Request, common: Annotated[CommonFields, Form()]) -> JobForm:
    """Return the values of the form in a request."""
    form = await request.form()
    options: dict[str, list[str]] = {}
    for name, value in form.multi_items():
        if "." in name and isinstance(value, str):
            options.setdefault(name, []).append(without_surrogates(value))
    return JobForm(**common.model_dump(), options=options)


FilledForm = Annotated[JobForm, Depends(read_form)]


def _parse(field: FormField, texts: Sequence[str], dataset: str) -> object:
    """Return the option value in the texts of a field, or None for a blank field. Lists of datasets omit `dataset`."""
    match field.widget:
        case "checkbox":
            return bool(texts)
        case "choices":
            return list(dict.fromkeys([*([field.required] if field.required else []), *texts]))
        case "datasets":
            return [name for name in texts if name != dataset]
    text = texts[0].strip() if texts else ""
    if not text:
        return None
    match field.widget:
        case "number":
            return _parse_number(text, field.label)
        case "numbers":
            return [_parse_number(part, field.label) for part in text.replace(",", " ").split()]
        case "lines":
            return parse_lines(text, field.label, "reviews = 0.3")
    return field.parse(text)


def _show(field: FormField, value: Any) -> list[str]:
    """Return the texts that the form field shows for the option value `value`."""
    if value is None or value is PydanticUndefined:
        return []
    match field.widget:
        case "checkbox":
            return ["true"] if value else []
        case "choices" | "datasets":
            return list(value)
        case "number":
            return [f"{value:g}"]
        case "numbers":
            return [", ".join(f"{number:g}" for number in value)]
        case "lines":
            return ["\n".join(f"{key} = {json.dumps(entry)}" for key, entry in value.items())]
    return [field.show(value)]


def parse_lines(text: str, label: str, example: str, *, texts: bool = False) -> dict[str, object]:
    """Return key → value from lines of `key = value`. A value is JSON, or text if it is not valid JSON.

    texts: every value is text. label, example: name and valid line of the field, for errors. Raises InvalidRequest.
    """
    values: dict[str, object] = {}
    for line in text.splitlines():
        if not line.strip():
            continue
        key, sign, value = (part.strip() for part in line.partition("="))
        if not (key and sign and value):
            raise InvalidRequest(
                f"{label}: Invalid line '{line.strip()[:80]}'. Expected key = value, such as {example}."
            )
        if texts:
            values[key] = value
            continue
        try:
            check_json(value.encode())
            values[key] = json.loads(value)
        except UnsupportedJSON as error:
            raise InvalidRequest(f"{label}: {key}: {error}") from error
        except ValueError:
            values[key] = value
    return values


def _parse_seeds(text: str) -> list[int]:
    parts = text.replace(",", " ").split()
    if not parts or not all(part.isascii() and part.isdigit() for part in parts):
        raise InvalidRequest("Seeds: Expected whole numbers separated by commas or blanks, such as 0, 1, 2.")
    return [int(part[:12]) for part in parts]


def _parse_number(text: str, label: str) -> float:
    """Return the number in `text`, as an int if it has no fraction. Raises InvalidRequest. label: name of the field."""
    try:
        value = float(text)
        return int(value) if value == int(value) else value
    except (ValueError, OverflowError) as error:
        raise InvalidRequest(f"{label}: Invalid number '{text.strip()[:40]}'. Expected a number like 0.3.") from error
