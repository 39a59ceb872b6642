"""The form for a new job, as it was filled in, and the request that it stands for."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from services.common.bodies import UnsupportedJSON, check_json
from services.common.problem import validation_problem
from tlm_core.errors import InvalidRequest
from tlm_core.jobs.options import LearningCurve, Prune, ShareTickets
from tlm_core.jobs.spec import FROM_JOB, JobSpec

_CURVE, _PRUNE = LearningCurve(), Prune()


class Asked(BaseModel):
    """The form as it was filled in; fields of other kinds than the chosen one do not count.

    key: drawn when the form was shown. Lists are of what is ticked, without what every job of the kind has.
    """

    model_config = ConfigDict(frozen=True)

    kind: str = Field("train", max_length=20)
    dataset: str = Field("", max_length=200)
    corpus: str = Field("", max_length=200)
    scale: str = Field("tiny", max_length=20)
    recipe: str = Field("fast", max_length=20)
    seeds: str = Field("0", max_length=400)
    overrides: str = Field("", max_length=10_000)
    metadata: str = Field("", max_length=10_000)
    priority: str = Field("0", max_length=10)
    minutes: str = Field("", max_length=20)
    key: str = Field("", max_length=200)
    # learning curves
    sizes: str = Field("", max_length=400)
    models: tuple[str, ...] = Field((), max_length=10)
    pretrained: str = Field("", max_length=300)
    unlabelled: bool = False
    lstm: str = Field("", max_length=20)
    margin: str = Field("", max_length=20)
    # pruning
    job: str = Field("", max_length=100)
    levels: str = Field("", max_length=400)
    tickets: tuple[str, ...] = Field((), max_length=10)
    # ticket sharing
    others: tuple[str, ...] = Field((), max_length=100)
    level: str = Field("", max_length=20)
    own_levels: str = Field("", max_length=100_000)
    # pruning and ticket sharing
    as_published: bool = False

    @classmethod
    def fresh(cls, dataset: str, corpus: str) -> Asked:
        """The form before anything was typed: each kind with its defaults."""
        return cls(
            dataset=dataset,
            corpus=corpus,
            sizes=_numbers_of(_CURVE.sizes),
            models=_CURVE.models,
            lstm=f"{_CURVE.lstm.layers}-{_CURVE.lstm.hidden}",
            margin=f"{_CURVE.margin:g}",
            levels=_numbers_of(_PRUNE.levels),
            tickets=_PRUNE.tickets,
            level=f"{ShareTickets.model_fields['level'].default:g}",
        )

    def spec(self) -> JobSpec:
        """The request that the form stands for. Raises InvalidRequest."""
        overrides = lines_of(self.overrides, "recipe", "joint.rho2 = 5")
        if not self.corpus:
            overrides.setdefault("selection.selector", "none")
        labels = lines_of(self.metadata, "labels", "team = search", texts=True)
        asked: dict[str, Any] = {
            "kind": self.kind,
            "dataset": self.dataset,
            "corpus": self.corpus or None,
            "scale": self.scale,
            "recipe": self.recipe,
            "seeds": _whole_numbers(self.seeds, "seeds"),
            "set": overrides,
            "metadata": labels,
            "priority": _number(self.priority or "0", "priority"),
            "max_runtime_seconds": 60 * _number(self.minutes, "longest running time") if self.minutes.strip() else None,
        }
        if self.kind != "train":
            asked[self.kind] = self._options()
        if asked.get("prune", {}).get("job"):
            asked = {name: value for name, value in asked.items() if name not in FROM_JOB}
        try:
            return JobSpec.model_validate(asked)
        except ValidationError as error:
            faults: list[Any] = [{**one, "loc": ("body", *one["loc"])} for one in error.errors()]
            raise InvalidRequest(str(validation_problem(faults)["detail"])) from error

    def _options(self) -> dict[str, Any]:
        """What the chosen kind asks for beyond a recipe."""
        match self.kind:
            case "learning_curve":
                return {
                    "sizes": _numbers(self.sizes, "sizes"),
                    "models": list(dict.fromkeys(("bilstm", *self.models))),
                    "pretrained": self.pretrained.strip() or None,
                    "unlabelled": self.unlabelled,
                    "lstm": _lstm(self.lstm) if self.lstm.strip() else {},
                    "margin": _number(self.margin, "margin") if self.margin.strip() else _CURVE.margin,
                }
            case "prune":
                return {
                    "job": self.job.strip() or None,
                    "levels": _numbers(self.levels, "levels"),
                    "tickets": list(dict.fromkeys(("winning", *self.tickets))),
                    "as_published": self.as_published,
                }
            case "share_tickets":
                return {
                    "others": [name for name in self.others if name != self.dataset],
                    "level": _number(self.level, "level"),
                    "tickets": lines_of(self.own_levels, "levels of single data sets", "reviews = 0.3"),
                    "as_published": self.as_published,
                }
        raise InvalidRequest(f"'{self.kind}' is no kind of job; take one of those that the form shows")


def lines_of(text: str, what: str, example: str, *, texts: bool = False) -> dict[str, Any]:
    """Lines of `key = value`; a value that is no JSON is a text, and so is every value if `texts`.

    Raises InvalidRequest with the line that is none.
    """
    found: dict[str, Any] = {}
    for line in text.splitlines():
        if not line.strip():
            continue
        key, sign, value = (part.strip() for part in line.partition("="))
        if not (key and sign and value):
            raise InvalidRequest(f"{what}: '{line.strip()[:80]}' is no 'key = value'; write such as {example}")
        if texts:
            found[key] = value
            continue
        try:
            check_json(value.encode())
            found[key] = json.loads(value)
        except UnsupportedJSON as error:
            raise InvalidRequest(f"{what}: {key}: {error}") from error
        except ValueError:
            found[key] = value
    return found


def _whole_numbers(text: str, what: str) -> list[int]:
    parts = text.replace(",", " ").split()
    if not parts or not all(part.isascii() and part.isdigit() for part in parts):
        raise InvalidRequest(f"{what}: give whole numbers with commas or blanks between, such as 0, 1, 2")
    return [int(part[:12]) for part in parts]


def _lstm(text: str) -> dict[str, int]:
    """Its shape, in the paper's naming: `4-256` is four layers of 256 each way, over token vectors as wide."""
    parts = text.strip().upper().removeprefix("LSTM-").split("-")
    if len(parts) != 2 or not all(part.isascii() and part.isdigit() for part in parts):
        raise InvalidRequest(f"BiLSTM: '{text.strip()}' is no shape; give layers and width, such as 4-256")
    layers, width = (int(part) for part in parts)
    return {"layers": layers, "hidden": width, "embedding": width}


def _numbers(text: str, what: str) -> list[float]:
    return [_number(part, what) for part in text.replace(",", " ").split()]


def _number(text: str, what: str) -> float:
    """A number, a whole one where there is nothing behind the point."""
    try:
        value = float(text)
        return int(value) if value == int(value) else value
    except (ValueError, OverflowError) as error:
        raise InvalidRequest(f"{what}: '{text.strip()[:40]}' is no number; write such as 0.3") from error


def _numbers_of(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)
