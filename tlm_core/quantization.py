"""8-bit weights for the encoder of a returned model."""

from __future__ import annotations

import shutil
from pathlib import Path

from tlm_core.errors import Conflict, InvalidRequest
from tlm_core.evaluation.combine import LINEAR_MODELS
from tlm_core.serving import MODEL, load_model

# The operators with weights. For others, the library logs warnings about the types of their inputs.
_OPERATORS = ["LSTM", "MatMul", "Gather"]


def quantize(folder: Path, out: Path) -> tuple[int, int]:
    """Copy the model in `folder` to `out`, with 8-bit matrices in the encoder.

    Returns the sizes of model.onnx in bytes, before and after. folder: a folder that `tlm download` wrote. Raises
    InvalidRequest for a linear model, Conflict if `out` exists, and CorruptArtifact for an unreadable model.
    """
    from onnxruntime.quantization.shape_inference import quant_pre_process

    if out.exists():
        raise _exists(out)
    if (name := load_model(folder).name) in LINEAR_MODELS:
        raise InvalidRequest(
            f"'{folder / MODEL}' is the model '{name}', which has no encoder to quantize. Use the model unquantized."
        )
    try:
        shutil.copytree(folder, out, ignore=shutil.ignore_patterns(".*"))  # `tlm download` marks its own folders.
        # An ensemble has half-precision weights. This step converts them to the precision of onnxruntime's products.
        quant_pre_process(folder / MODEL, out / MODEL, skip_symbolic_shape=True)
        quantize_graph(out / MODEL, out / MODEL)
    except FileExistsError as error:  # Another process has made the folder since the check, and may still write it.
        raise _exists(out) from error
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)  # Otherwise the folder would hold the model without 8-bit weights.
        raise
    return (folder / MODEL).stat().st_size, (out / MODEL).stat().st_size


def _exists(out: Path) -> Conflict:
    return Conflict(f"'{out}' exists. Name a new folder.")


def quantize_graph(graph: Path, out: Path) -> None:
    """Write a copy of the ONNX file `graph` to the file `out`, with 8-bit weights and integer matrix products."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(graph)
    # `quantize` preprocesses graphs, and a BiLSTM needs none. Without this property, the library logs advice.
    onnx.helper.set_model_props(model, {"onnx.quant.pre_process": "onnxruntime.quant"})
    # With 8 bits, sums saturate on processors with AVX2 but without VNNI. With 7 bits they do not.
    options = {"per_channel": True, "weight_type": QuantType.QInt8, "reduce_range": True}
    quantize_dynamic(model, out, op_types_to_quantize=_OPERATORS, **options)
