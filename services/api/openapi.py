"""The OpenAPI document: a sequence of requests as an example, and examples of answers and required parameters."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from tlm_core.json_files import read_json
from tlm_core.wire import JsonObject, Problem

DESCRIPTION = """Trains small text classifiers from scratch. Errors are RFC 9457 problems. Lists have pages: `after`, \
`limit`, `has_more`.

An example, from a file to predictions. `train.csv` has the columns `text` and `label`:

```
AUTH="Authorization: Bearer $TLM_TOKEN"
curl -H "$AUTH" -F name=reviews -F train=@train.csv $TLM_URL/v1/datasets
JOB=$(curl -H "$AUTH" --json '{"dataset": "reviews", "scale": "instant"}' $TLM_URL/v1/jobs | jq -r .id)
curl -H "$AUTH" -N -H "Accept: text/event-stream" $TLM_URL/v1/jobs/$JOB/events                # events until the end
curl -H "$AUTH" $TLM_URL/v1/jobs/$JOB/report
curl -H "$AUTH" -X PUT --json '{"job": "'$JOB'"}' $TLM_URL/v1/models/reviews@production
curl -H "$AUTH" --json '{"texts": ["a text"]}' $TLM_URL/v1/models/reviews@production/predict
```
"""
# Examples of answers, by the name of the schema. An answer without a named schema has the name METHOD PATH.
_EXAMPLES = Path(__file__).with_name("examples.json")

# The reference lists the operations in this order.
_TAGS = ("datasets", "jobs", "models", "results", "corpora", "uploads", "webhooks", "service")

# Examples of required parameters, by name. The reference would send examples of optional parameters with each request.
_REQUIRED = {
    "alias": "reviews@production", "corpus": "manuals", "dataset": "reviews",
    "ids": ["job_1m84535vjbxjm29yr1q", "job_1m8453157tdj3z0js7d"], "job": "job_1m84535vjbxjm29yr1q",
    "load": "load_1m8453157tdj3z0js7d", "model": "reviews@production", "name": "model.onnx", "node": "joint.s0",
    "step": 200, "upload": "upl_1m8453157tdj3z0js7d", "version": "4f1c2a9be07d", "webhook": "wh_1m8453157tdj3z0js7d",
}  # fmt: skip


def openapi(app: FastAPI) -> JsonObject:
    """Return the OpenAPI document of `app`. It has the schema Problem instead of FastAPI's validation errors."""
    if app.openapi_schema is None:
        tags = [{"name": name} for name in _TAGS]
        schema = get_openapi(
            title=app.title, version=app.version, description=DESCRIPTION, routes=app.routes, tags=tags
        )
        schemas = schema["components"]["schemas"]
        schemas["Problem"] = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        examples = read_json(_EXAMPLES)
        for name, content in answers(schema):
            content["example"] = examples[name]
        for operation in (each for methods in schema["paths"].values() for each in methods.values()):
            for parameter in operation.get("parameters", ()):
                if parameter.get("required"):
                    parameter["example"] = _REQUIRED[parameter["name"]]
        app.openapi_schema = schema
    return app.openapi_schema


def answers(schema: JsonObject) -> Iterator[tuple[str, JsonObject]]:
    """Yield (name in `_EXAMPLES`, description of the content) for each successful JSON response in `schema`."""
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            for status, response in operation["responses"].items():
                content = response.get("content", {}).get("application/json")
                if status.startswith("2") and content:
                    named = content["schema"].get("$ref", "").rpartition("/")[2]
                    yield named or f"{method.upper()} {path}", content
