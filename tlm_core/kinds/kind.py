"""The classes that define a kind of job. `tlm_core/kinds/__init__.py` lists every kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, Protocol, TypeVar

from pydantic import ValidationError

from tlm_core.jobs.plan import Plan
from tlm_core.jobs.spec import DatasetInput, JobRecord, KindOptions, PlanInputs
from tlm_core.training.recipe import Recipe

Options = TypeVar("Options", bound=KindOptions)


@dataclass(frozen=True)
class FormField:
    """The field for one option in the dashboard's form for new jobs.

    widget: `numbers` is a list of numbers in one line; `lines` are `key = value` lines; `datasets` are checkboxes for
    all datasets except the job's `dataset`; `job` suggests finished jobs with an encoder.
    """

    option: str
    label: str
    hint: str = ""
    widget: Literal["text", "number", "numbers", "checkbox", "choices", "lines", "datasets", "job"] = "text"
    choices: Mapping[str, str] = field(default_factory=dict)  # value → hint
    required: str = ""  # a choice that users cannot deselect
    parse: Callable[[str], object] = str  # converts the text of a `text` widget to the option's value
    show: Callable[[Any], str] = str  # converts the option's value to text


class Lookup(Protocol):
    """Returns the jobs, reports and datasets that options name. Raises NotFound for an unknown id or name."""

    def job(self, job_id: str) -> JobRecord: ...

    def report(self, job: JobRecord) -> Mapping[str, Any]:
        """Return the report of a job. Raises NotReady or NotFound if the job has no report."""
        ...

    def dataset(self, name: str) -> DatasetInput: ...


@dataclass(frozen=True)
class Kind(Generic[Options]):
    """A kind of job."""

    name: str
    summary: str  # one line for help texts and forms
    options: type[Options]
    plan: Callable[[PlanInputs[Options]], Plan]
    # Raises InvalidRequest if the options do not fit the recipe. The last argument has the names of all datasets.
    check: Callable[[Options, Recipe, tuple[str, ...]], None] = lambda *_: None
    datasets_option: str | None = None  # the option that lists datasets in addition to the job's `dataset`
    # Returns all recipes that the job trains with.
    recipes: Callable[[Options, Recipe], list[Recipe]] = lambda _, recipe: [recipe]
    # Returns the options with each job id replaced by the result of that job.
    pin: Callable[[Options, Recipe, Lookup], Options] = lambda options, *_: options
    # The option with the id of a job that provides dataset, corpus, recipe, seeds, and artifacts up to `evaluate`.
    source_option: str | None = None
    fields: tuple[FormField, ...] = ()  # of the dashboard's form
    # Replaces paths in options of the command line by the contents of the files.
    read_files: Callable[[dict[str, object]], dict[str, object]] = lambda options: options
    # Whether the plan contains the nodes of `train` up to `evaluate`. Such kinds can use a dataset's own selection,
    # write traces, and provide the model that `prune` starts from.
    extends_train: bool = False
    instant: bool = False  # whether the kind supports the scale `instant`, which trains the linear model alone
    has_model: bool = True  # whether the job exports a model for download and predictions

    def datasets(self, options: Options) -> tuple[str, ...]:
        """Return the names of the datasets that the job uses in addition to its `dataset`."""
        return getattr(options, self.datasets_option) if self.datasets_option else ()

    def source_job(self, options: Options) -> str | None:
        """Return the id of the source job, which is the value of the option `source_option`, or None."""
        return getattr(options, self.source_option) if self.source_option else None

    def names_source(self, options: Mapping[str, object]) -> bool:
        """Return whether `options`, in JSON form, name a source job. False for invalid options."""
        try:
            return self.source_job(self.options.model_validate(options)) is not None
        except ValidationError:
            return False
