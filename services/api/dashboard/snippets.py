"""Requests for jobs, predictions and uploads as command line, curl and Python."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator

from fastapi import Request

from services.api.dashboard.web import PREFIX
from tlm_core.jobs.spec import JobSpec


def snippets(spec: JobSpec, url: str) -> dict[str, str]:
    """Return language → code that submits `spec`. url: the URL of the gateway, without a slash at its end."""
    given = spec.model_dump(mode="json", exclude_defaults=True)
    body = {name: value for name, value in given.items() if value != {}}
    fields = ", ".join(f"{name}={value!r}" for name, value in body.items())
    return {
        "command line": " \\\n  ".join(["tlm submit", *_arguments(body)]),
        "curl": f'curl -H "Authorization: Bearer $TLM_TOKEN" \\\n  --json {shlex.quote(json.dumps(body))} \\\n'
        f"  {shlex.quote(f'{url}/v1/jobs')}",
        "Python": _python(f"job = tlm.submit(JobSpec({fields}))", "from tlm_core.jobs.spec import JobSpec", url),
    }


def prediction_snippets(model: str, url: str) -> dict[str, str]:
    """Return language → code that requests predictions. model: id of a job, or an alias. url: as in `snippets`."""
    return {
        "command line": f'tlm predict {model} "a text to classify"',
        "curl": f'curl -H "Authorization: Bearer $TLM_TOKEN" \\\n  --json \'{{"texts": ["a text to classify"]}}\' \\\n'
        f"  {shlex.quote(f'{url}/v1/models/{model}/predict')}",
        "Python": "from tlm_client.models import load_onnx\n\n"
        f'print(load_onnx({model!r}).predict(["a text to classify"]))',
    }


def upload_snippets(path: str, command: str, fields: str, call: str, url: str) -> dict[str, str]:
    """Return language → code that uploads a file. The languages are "command line", "curl" and "Python".

    path: the path of the API. command: the command line. fields: options of curl. call: the call of the Python client.
    url: as in `snippets`.
    """
    return {
        "command line": command,
        "curl": f'curl -H "Authorization: Bearer $TLM_TOKEN" \\\n  {fields} \\\n  {shlex.quote(f"{url}{path}")}',
        "Python": _python(f"tlm.{call}", "from pathlib import Path", url),
    }


def own_url(request: Request) -> str:
    """Return the URL of the gateway that serves a dashboard page, without a slash at its end."""
    return str(request.base_url).removesuffix(f"{PREFIX}/").rstrip("/")


def _python(call: str, imported: str, url: str) -> str:
    """Return a program that opens a client as `tlm` for one call. imported: import statements that the call needs."""
    imports = f"import os\n\nfrom tlm_client.client import TLMClient\n{imported}"
    return f'{imports}\n\nwith TLMClient({url!r}, os.environ["TLM_TOKEN"]) as tlm:\n    {call}'


def _arguments(body: dict[str, object]) -> Iterator[str]:
    for name, value in body.items():
        match name, value:
            case "seeds", list():
                yield " ".join(f"--seed {seed}" for seed in value)
            case "overrides", dict():
                yield from (f"--set {shlex.quote(f'{key}={json.dumps(entry)}')}" for key, entry in value.items())
            case "metadata", dict():
                yield from (f"--label {shlex.quote(f'{key}={entry}')}" for key, entry in value.items())
            case "options", _:
                yield f"--options {shlex.quote(json.dumps(value))}"
            case "max_runtime_seconds", _:
                yield f"--max-runtime {value}"
            case _:
                yield f"--{name.replace('_', '-')} {shlex.quote(str(value))}"
