"""Content-addressed artifacts and their manifests, over any fsspec file system.

An artifact is a folder of files and a `manifest.json` that is written last and lists every file with its size and
SHA-256. Each attempt writes below its own prefix, so two attempts never write the same path. An artifact is published
by a fenced step of the job store, which maps an artifact id to one `ManifestRef`.
"""

from typing import TYPE_CHECKING

from tlm_core.artifacts.faults import storage_errors
from tlm_core.artifacts.hashing import artifact_id, canonical_json, digest_of, sha256_file
from tlm_core.artifacts.manifest import MANIFEST, FileEntry, Manifest, ManifestRef

if TYPE_CHECKING:
    from tlm_core.artifacts.mark import MARK
    from tlm_core.artifacts.store import ArtifactStore, drop_untouched

__all__ = [
    "MANIFEST",
    "MARK",
    "ArtifactStore",
    "FileEntry",
    "Manifest",
    "ManifestRef",
    "artifact_id",
    "canonical_json",
    "digest_of",
    "drop_untouched",
    "sha256_file",
    "storage_errors",
]


def __getattr__(name: str) -> object:
    """Import the store when it is used: it needs fsspec, which the client does without."""
    if name not in __all__:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    from tlm_core.artifacts import mark, store

    return getattr(mark if name == "MARK" else store, name)
