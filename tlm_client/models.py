"""Load the model of a job in Python, as an ONNX graph or as Hugging Face classes."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from tlm_client.client import TLMClient
from tlm_client.console import Session
from tlm_client.stack.folder import user_folder
from tlm_core.errors import MissingDependency, NotFound
from tlm_core.serving import Model, load_model

if TYPE_CHECKING:
    from transformers import TextClassificationPipeline


def load_onnx(model: str, client: TLMClient | None = None) -> Model:
    """Return the model of a job, or its linear model until the final model exists.

    The model has the methods `predict` and `probabilities`. model: id or name of a job, an alias, or @latest.
    client: by default, a new client that `own_client` returns. The files remain in $XDG_CACHE_HOME/tlm, by default
    ~/.cache/tlm.

    Raises what TLMClient.download raises, and MissingDependency without onnxruntime or tokenizers.
    """
    folder, final = _download(model, client)
    return load_model(folder if final else folder / "linear")


def load_transformers(model: str, client: TLMClient | None = None) -> TextClassificationPipeline:
    """Return the encoder of a job as a pipeline of the library `transformers`. See `load_onnx`.

    The pipeline has only the encoder of the best seed, even if the job returns another model. It truncates long texts.

    Raises NotFound if the job has no encoder (yet), and MissingDependency without transformers.
    """
    try:
        from transformers import pipeline
    except ImportError as error:
        message = "Loading an encoder needs the packages transformers and torch. Run `pip install transformers torch`."
        raise MissingDependency(message) from error
    folder, _ = _download(model, client)
    if not (folder / "model" / "config.json").is_file():
        raise NotFound(f"'{model}' has no encoder, or the job is not finished. Use load_onnx for its linear model.")
    return pipeline("text-classification", str(folder / "model"), truncation=True)


def _download(model: str, client: TLMClient | None) -> tuple[Path, bool]:
    """Return the folder with the files of a model, and whether the model is final. Downloads only missing files."""
    with nullcontext(client) if client is not None else own_client() as used:
        job = used.job_id(model)
        final = used.model(job).final
        folder = user_folder("XDG_CACHE_HOME", ".cache") / "models" / (job if final else f"{job}-linear")
        used.download(job, folder)
    return folder, final


def own_client() -> TLMClient:
    """Return a client of the gateway that the environment variables select.

    TLM_PROFILE names a profile. Without it, TLM_URL and TLM_TOKEN select the gateway. Without a profile and a URL, the
    client uses the stack on this machine. The stack's data folder is TLM_DATA_DIR, by default that of `tlm up`.
    """
    profile, url, token = (os.environ.get(name) or None for name in ("TLM_PROFILE", "TLM_URL", "TLM_TOKEN"))
    return Session(profile=profile, url=url, token=None if profile else token).client()
