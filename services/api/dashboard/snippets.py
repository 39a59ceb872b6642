"""The request for a job as curl, Python and command line."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator

from tlm_core.jobs.spec import JobSpec


def snippets(spec: JobSpec, url: str) -> dict[str, str]:
    """Return the request in each language. url: of the gateway, without a slash at its end."""
    body: dict[str, object] = spec.model_dump(mode="json", exclude_defaults=True)
    fields = ", ".join(f"{name}={value!r}" for name, value in body.items())
    return {
        "command line": " \\\n  ".join(["tlm submit", *_arguments(body)]),
        "curl": f'curl -H "Authorization: Bearer $TLM_TOKEN" \\\n  --json {shlex.quote(json.dumps(body))} \\\n'
        f"  {shlex.quote(f'{url}/v1/jobs')}",
        "Python": "import os\n\nfrom tlm_client.client import TLMClient\nfrom tlm_core.jobs.spec import JobSpec\n\n"
        f'with TLMClient({url!r}, os.environ["TLM_TOKEN"]) as tlm:\n    job = tlm.submit(JobSpec({fields}))',
    }


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
                yield f"--{name} {shlex.quote(str(value))}"
