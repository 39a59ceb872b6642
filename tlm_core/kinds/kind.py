"""The classes that define a kind of job. `tlm_core/kinds/__init__.py` lists every kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, Protocol, TypeVar

from pydantic import ValidationError

from tlm_core.jobs.plan import Plan
from tlm_core.jobs.spec import DatasetInput, KindOptions, PlanInputs
from tlm_core.training.recipe import Recipe
from tlm_core.training.stage import Stage

Options = TypeVar("Options", bound=KindOptions)


@dataclass(frozen=True)
class FormField:
    """A field of the dashboard's form for one option.

    widget: `numbers` is a list of numbers in one line; `lines` are `key = value` lines; `datasets` are checkboxes for
    all datasets except the job's own; `job` suggests finished jobs with an encoder. choices: value → hint.
    required: a choice that users cannot deselect.
    parse, show: convert between the text of a `text` widget and the option's value.
    """

    option: str
    label: str
    hint: str = ""
    widget: Literal["text", "number", "numbers", "checkbox", "choices", "lines", "datasets", "job"] = "text"
    choices: Mapping[str, str] = field(default_factory=dict)
    required: str = ""
    parse: Callable[[str], object] = str
    show: Callable[[Any], str] = str


@dataclass(frozen=True)
class FinishedJob:
    """A job that the options of another job reference by id.

    dataset: as the job's request names it. report: returns the job's report. It raises NotReady or NotFound if the job
    has no report.
    """

    id: str
    kind: str
    dataset: str
    data: DatasetInput
    recipe: Recipe
    report: Callable[[], Mapping[str, Any]]


class Lookup(Protocol):
    """Resolves ids and names in options. Raises NotFound for an unknown id or name."""

    def job(self, job_id: str) -> FinishedJob: ...

    def dataset(self, name: str) -> DatasetInput: ...


def _no_check(options: object, recipe: Recipe, names: tuple[str, ...]) -> None: ...


@dataclass(frozen=True)
class Kind(Generic[Options]):
    """A kind of job.

    summary: one line for help texts and forms.
    options: class of the options. plan: builds the job's nodes. stages: the stages that no other kind lists.
    check: raises InvalidRequest if the options do not fit the recipe. Its last argument contains the dataset names.
    datasets_option: name of the option that lists datasets in addition to the job's `dataset`.
    recipes: returns all recipes that the job trains with.
    pin: returns the options with each job id replaced by the result of that job.
    source_option: name of the option with the id of a job that provides dataset, corpus, recipe, seeds, and artifacts
    up to `evaluate`.
    fields: fields of the dashboard's form. read_files: replaces paths in options of the command line by file contents.
    extends_train: the plan contains the nodes of `train` up to `evaluate`. Such kinds can use a dataset's own
    selection, write traces, and provide the model that `prune` starts from.
    instant: the kind supports the scale `instant`, which trains the linear model alone.
    has_model: the job exports a model for download and predictions.
    """

    name: str
    summary: str
    options: type[Options]
    plan: Callable[[PlanInputs[Options]], Plan]
    stages: tuple[Stage, ...] = ()
    check: Callable[[Options, Recipe, tuple[str, ...]], None] = _no_check
    datasets_option: str | None = None
    recipes: Callable[[Options, Recipe], list[Recipe]] = lambda _, recipe: [recipe]
    pin: Callable[[Options, Recipe, Lookup], Options] = lambda options, *_: options
    source_option: str | None = None
    fields: tuple[FormField, ...] = ()
    read_files: Callable[[dict[str, object]], dict[str, object]] = lambda options: options
    extends_train: bool = False
    instant: bool = False
    has_model: bool = True

    def datasets(self, options: Options) -> tuple[str, ...]:
        """Return the names of the datasets that the job uses in addition to its `dataset`."""
        return getattr(options, self.datasets_option) if self.datasets_option else ()

    def source_job(self, options: Options) -> str | None:
        """Return the id in `source_option`, or None."""
        return getattr(options, self.source_option) if self.source_option else None

    def names_source(self, options: Mapping[str, object]) -> bool:
        """Return whether a request with these options names a source job. False for invalid options."""
        try:
            return self.source_job(self.options.model_validate(options)) is not None
        except ValidationError:
            return False
