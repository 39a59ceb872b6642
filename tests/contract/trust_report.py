"""The parts of a report about confidence and labels, as the evaluate stage writes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tlm_core.evaluation.calibration import trust


def trust_parts(labels: Sequence[str]) -> dict[str, Any]:
    """Return these parts. The suspects are the rows 3, 2 and 1 of train and 5 of validation."""
    random = np.random.default_rng(0)
    targets = random.integers(0, len(labels), 120)
    outputs = random.normal(0, 1, (120, len(labels))).astype(np.float32)
    outputs[np.arange(120), targets] += 2
    measured = trust(outputs, targets)
    rows = [
        {"split": "train", "row": row, "label": labels[0], "suggested": labels[1], "score": 0.9 + row / 100}
        for row in (3, 2, 1)
    ]
    rows.append({**rows[0], "split": "validation", "row": 5, "score": 0.7})
    return {
        **{name: {"test": part} for name, part in measured.items()},
        "linear": {"top_ngrams": {label: [label, "my parcel"] for label in labels}},
        "suspects": {"neighbors": False, "total": 7, "rows": rows},
    }
