"""The tasks of GLUE (Wang et al. 2019, arXiv 1804.07461) on the hub: columns, metric, and which set is our test.

Labels of GLUE's own test sets are not public. As papers on compression do (Super Tickets among them, arXiv
2105.12002), its development set is read as test here, and validation is cut from train.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

PATH = "nyu-mll/glue"
NOTE = "GLUE: labels of its test sets are not public, so its development set is test, and validation is cut from train"


@dataclass(frozen=True)
class GlueTask:
    """text, pair: columns. metric: the one by which GLUE ranks. positive: the label of which F1 is taken.

    tests: sets of the hub → our splits; the first is `test`, any other a further test beside it.
    """

    text: str
    pair: str | None
    metric: str
    positive: str | None = None
    tests: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({"validation": "test"}))

    @property
    def splits(self) -> dict[str, str]:
        """Sets of the hub → our splits."""
        return {"train": "train", **self.tests}


_MNLI = MappingProxyType({"validation_matched": "test", "validation_mismatched": "test_mismatched"})
GLUE: Mapping[str, GlueTask] = MappingProxyType(
    {
        "cola": GlueTask("sentence", None, "matthews"),
        "sst2": GlueTask("sentence", None, "accuracy"),
        "mrpc": GlueTask("sentence1", "sentence2", "f1", positive="equivalent"),
        "qqp": GlueTask("question1", "question2", "f1", positive="duplicate"),
        "stsb": GlueTask("sentence1", "sentence2", "pearson"),
        "mnli": GlueTask("premise", "hypothesis", "accuracy", tests=_MNLI),
        "qnli": GlueTask("question", "sentence", "accuracy"),
        "rte": GlueTask("sentence1", "sentence2", "accuracy"),
        "wnli": GlueTask("sentence1", "sentence2", "accuracy"),
    }
)


def glue_task(path: str, config: str | None) -> GlueTask | None:
    """The task that `hub:PATH:CONFIG` means, or None if that is none of GLUE's."""
    return GLUE.get(config or "") if path == PATH else None
