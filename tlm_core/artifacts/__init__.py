"""Content-addressed artifacts and their manifests, over any fsspec file system.

An artifact is a folder of files and a `manifest.json` that is written last and lists every file with its size and
SHA-256. Each attempt writes below its own prefix, so two attempts never write the same path. An artifact is published
by a fenced step of the job store, which maps an artifact id to one `ManifestRef`.
"""

from tlm_core.artifacts.faults import storage_errors
from tlm_core.artifacts.hashing import artifact_id, canonical_json, digest_of, sha256_file
from tlm_core.artifacts.manifest import MANIFEST, FileEntry, Manifest, ManifestRef

# This list omits the store, because the store needs fsspec and the client does not.
__all__ = [
    "MANIFEST",
    "FileEntry",
    "Manifest",
    "ManifestRef",
    "artifact_id",
    "canonical_json",
    "digest_of",
    "sha256_file",
    "storage_errors",
]
