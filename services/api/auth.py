"""Authentication: one API token, created at the first start, and the tenant of a request."""

from __future__ import annotations

import hmac
import os
import secrets
from pathlib import Path
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from tlm_core.errors import MissingDependency, Unauthorized
from tlm_core.jobs.spec import JobRecord

TENANT = "default"  # the owner of everything that callers with the token create
_bearer = HTTPBearer(
    auto_error=False, description="API token of the service, which `tlm up` stores in its secrets folder."
)


def ensure_token(path: Path) -> str:
    """Return the API token in the file `path`. Create a missing file with mode 0600 and a new token.

    Processes that start at the same time return the same token. Raises MissingDependency if the file is empty.
    """
    if path.exists():
        return _read_token(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(descriptor, "w", encoding="ascii") as handle:
            handle.write(f"tlm_{secrets.token_urlsafe(32)}\n")
            handle.flush()
            os.fsync(handle.fileno())
        # Unlike a rename, a link never replaces the file of a concurrent start.
        os.link(partial, path)
    except FileExistsError:
        pass
    finally:
        partial.unlink()
    return _read_token(path)


def _read_token(path: Path) -> str:
    token = path.read_text(encoding="ascii").strip()
    if not token:  # Otherwise the service would accept an empty token.
        raise MissingDependency(f"The token file {path} is empty. Delete it, and the next start creates a new token.")
    return token


def is_token(text: str, token: str) -> bool:
    """Return whether `text`, which a caller sent, is the API token."""
    # A form in another encoding can contain a lone surrogate, which UTF-8 cannot encode.
    return hmac.compare_digest(text.strip().encode(errors="replace"), token.encode())


async def tenant_of(
    request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> str:
    """Return the tenant of the request's token. Raises Unauthorized."""
    if credentials is None:
        raise Unauthorized("Missing API token. Send the header 'Authorization: Bearer TOKEN'.")
    if not is_token(credentials.credentials, request.app.state.parts.token):
        raise Unauthorized(
            "Unknown API token. Use the token in the gateway's token file: secrets/api_token in the data folder of "
            "`tlm up`, or /data/gateway/token in a container."
        )
    return TENANT


Tenant = Annotated[str, Depends(tenant_of)]


def _job(request: Request, job: str, tenant: Tenant) -> JobRecord:
    return request.app.state.parts.jobs.get(tenant, job)


# The job that the path names. A request for an unknown job ends with NotFound.
PathJob = Annotated[JobRecord, Depends(_job)]
