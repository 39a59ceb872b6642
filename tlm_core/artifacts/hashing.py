"""Digests of values and files, and the ids of artifacts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path


def canonical_json(value: object) -> str:
    """Return JSON with sorted keys and without spaces. Equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest_of(value: object) -> str:
    """Return the SHA-256 (hex) of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def sha256_file(path: Path) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def artifact_id(stage: str, version: int, params: Mapping[str, object], inputs: Mapping[str, str]) -> str:
    """Return the id of a stage's artifact, `art_…`. inputs: name of each input → digest of the input's manifest."""
    return "art_" + digest_of([stage, version, params, inputs])[:40]
