"""The eight tasks of the TLM paper (arXiv 2111.04130, table 1), their hub ids and the scores to compare with."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from tlm_core.errors import NotFound

RELEASE = "README of the TLM release, results table (github.com/yaoxingcheng/TLM)"
LABEL_COUNTS = "Gururangan et al. 2020 (arXiv 2004.10964), table 2"


@dataclass(frozen=True)
class KnownTask:
    """A task of the paper.

    labels: number of classes (source: LABEL_COUNTS). max_length: tokens of a row in the release.
    released: the release's test score in percent of `metric` for each scale (source: RELEASE).
    """

    name: str
    title: str
    metric: str
    labels: int
    released: Mapping[str, float]
    max_length: int = 128

    @property
    def hub_id(self) -> str:
        """Address of the data as the release publishes it: train/dev/test.csv with columns text and label."""
        return f"hub:yxchar/{self.name}-tlm"


def _task(
    name: str,
    title: str,
    labels: int,
    scores: tuple[float, float, float],
    *,
    metric: str = "macro_f1",
    length: int = 128,
) -> KnownTask:
    released = MappingProxyType(dict(zip(("small", "medium", "large"), scores, strict=True)))
    return KnownTask(name, title, metric, labels, released, length)


KNOWN_TASKS: Mapping[str, KnownTask] = MappingProxyType(
    {
        task.name: task
        for task in (
            _task("ag", "AG's News", 4, (93.74, 93.96, 94.36)),
            _task("hyp", "Hyperpartisan News", 2, (93.53, 94.05, 95.16)),
            _task("amazon", "Helpfulness of Amazon reviews", 2, (70.54, 70.90, 72.49)),
            _task("imdb", "IMDB film reviews", 2, (93.08, 93.97, 95.77), length=512),
            _task("citation_intent", "ACL-ARC citation intent", 6, (69.84, 72.37, 72.19)),
            _task("sciie", "SciERC relations", 7, (80.51, 81.88, 83.29)),
            _task("chemprot", "ChemProt relations", 13, (81.99, 83.24, 85.12), metric="micro_f1"),
            _task("rct-20k", "PubMed RCT sentence roles", 5, (86.99, 87.28, 87.50), metric="micro_f1"),
        )
    }
)


def known_task(name: str) -> KnownTask:
    """The known task of that name. Raises NotFound with the nearest name."""
    if name in KNOWN_TASKS:
        return KNOWN_TASKS[name]
    near = difflib.get_close_matches(name, KNOWN_TASKS, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(KNOWN_TASKS)}"
    raise NotFound(f"no known task '{name}'; {hint}")


def known_for_hub(path: str) -> KnownTask | None:
    """The known task published under the hub path OWNER/NAME, or None."""
    return next((task for task in KNOWN_TASKS.values() if task.hub_id == f"hub:{path}"), None)
