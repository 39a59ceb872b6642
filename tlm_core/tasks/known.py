"""Tasks with known columns and metrics: the eight of the TLM paper (arXiv 2111.04130, table 1) and those of GLUE."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType


@dataclass(frozen=True)
class KnownTask:
    """A task of the TLM paper. "The release" is the code of its authors (github.com/yaoxingcheng/TLM).

    labels: number of classes (Gururangan et al. 2020, arXiv 2004.10964, table 2). scores: `metric` on test in percent,
    at the scales small, medium and large (table in the README of the release). max_length: number of tokens to which
    the release truncates a row.
    """

    name: str
    title: str
    labels: int
    scores: tuple[float, float, float]
    metric: str = "macro_f1"
    max_length: int = 128

    @property
    def released(self) -> dict[str, float]:
        """Scale → test score of the release in percent."""
        return dict(zip(("small", "medium", "large"), self.scores, strict=True))

    @property
    def hub_id(self) -> str:
        """The hub id of the release's data: train.csv, dev.csv and test.csv with the columns `text` and `label`."""
        return f"hub:yxchar/{self.name}-tlm"


_TASKS = (
    KnownTask("ag", "AG's News", 4, (93.74, 93.96, 94.36)),
    KnownTask("hyp", "Hyperpartisan News", 2, (93.53, 94.05, 95.16)),
    KnownTask("amazon", "Helpfulness of Amazon reviews", 2, (70.54, 70.90, 72.49)),
    KnownTask("imdb", "IMDB film reviews", 2, (93.08, 93.97, 95.77), max_length=512),
    KnownTask("citation_intent", "ACL-ARC citation intent", 6, (69.84, 72.37, 72.19)),
    KnownTask("sciie", "SciERC relations", 7, (80.51, 81.88, 83.29)),
    KnownTask("chemprot", "ChemProt relations", 13, (81.99, 83.24, 85.12), "micro_f1"),
    KnownTask("rct-20k", "PubMed RCT sentence roles", 5, (86.99, 87.28, 87.50), "micro_f1"),
)
KNOWN_TASKS: Mapping[str, KnownTask] = MappingProxyType({task.name: task for task in _TASKS})


def known_for_hub(path: str) -> KnownTask | None:
    """Return the task of the TLM paper whose data have the hub path `path` (OWNER/NAME), or None."""
    return next((task for task in KNOWN_TASKS.values() if task.hub_id == f"hub:{path}"), None)


GLUE_PATH = "nyu-mll/glue"
_SPLITS = MappingProxyType({"train": "train", "validation": "test"})
GLUE_NOTE = "GLUE: test labels are not public, so the development set is test, and validation is cut from train"


@dataclass(frozen=True)
class GlueTask:
    """A task of GLUE (Wang et al. 2019, arXiv 1804.07461).

    Labels of GLUE's test sets are not public. As in papers on compression (Super Tickets, arXiv 2105.12002), the
    development set of GLUE is our test split. The service cuts validation from train.

    text, pair: names of the columns with the texts and the second texts. metric: a metric of GLUE for this task.
    positive: the label that F1 measures. splits: split on the hub → split of the task.
    """

    text: str
    pair: str | None
    metric: str
    positive: str | None = None
    splits: Mapping[str, str] = field(default_factory=lambda: _SPLITS)


_MNLI = MappingProxyType({"train": "train", "validation_matched": "test", "validation_mismatched": "test_mismatched"})
GLUE: Mapping[str, GlueTask] = MappingProxyType(
    {
        "cola": GlueTask("sentence", None, "matthews"),
        "sst2": GlueTask("sentence", None, "accuracy"),
        "mrpc": GlueTask("sentence1", "sentence2", "f1", positive="equivalent"),
        "qqp": GlueTask("question1", "question2", "f1", positive="duplicate"),
        "stsb": GlueTask("sentence1", "sentence2", "pearson"),
        "mnli": GlueTask("premise", "hypothesis", "accuracy", splits=_MNLI),
        "qnli": GlueTask("question", "sentence", "accuracy"),
        "rte": GlueTask("sentence1", "sentence2", "accuracy"),
        "wnli": GlueTask("sentence1", "sentence2", "accuracy"),
    }
)


def glue_task(path: str, config: str | None) -> GlueTask | None:
    """Return the GLUE task of the hub dataset `path` and its configuration `config`, or None."""
    return GLUE.get(config or "") if path == GLUE_PATH else None
