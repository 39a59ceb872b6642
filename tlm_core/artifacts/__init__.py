"""Content-addressed artifacts and their manifests, over any fsspec file system.

An artifact is a folder of files with a `manifest.json`, which is written last. The manifest lists every file with its
size and SHA-256. Each attempt writes into its own folders, so two attempts never write the same path. The job store
publishes an artifact: it stores one `ManifestRef` for the artifact's id. Attempts that have ended cannot publish.
"""

from tlm_core.artifacts.faults import NO_SPACE, storage_errors, temporary_folder
from tlm_core.artifacts.hashing import artifact_id, canonical_json, digest_of, sha256_file
from tlm_core.artifacts.manifest import MANIFEST, FileEntry, Manifest, ManifestRef

# This list omits the store, because the store needs fsspec and the client does not.
__all__ = [
    "MANIFEST",
    "NO_SPACE",
    "FileEntry",
    "Manifest",
    "ManifestRef",
    "artifact_id",
    "canonical_json",
    "digest_of",
    "sha256_file",
    "storage_errors",
    "temporary_folder",
]
