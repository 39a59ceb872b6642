"""Who may call: one API token, made at the first start; and whose things a request is about."""

from __future__ import annotations

import hmac
import os
import secrets
from pathlib import Path
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from tlm_core.errors import Unauthorized

_bearer = HTTPBearer(auto_error=False, description="the API token, as `tlm up` keeps it in its secrets")


def ensure_token(path: Path) -> str:
    """The token in `path` (mode 0600), made if there is none; two starts at once get the same one."""
    if path.exists():
        return path.read_text(encoding="ascii").strip()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(descriptor, "w", encoding="ascii") as handle:
            handle.write(f"tlm_{secrets.token_urlsafe(32)}\n")
            handle.flush()
            os.fsync(handle.fileno())
        # A link, unlike a rename, never replaces what another start has put there in the meantime.
        os.link(partial, path)
    except FileExistsError:
        pass
    finally:
        partial.unlink()
    return path.read_text(encoding="ascii").strip()


def tenant_of(request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]) -> str:
    """The tenant that the request's token belongs to. Raises Unauthorized."""
    if credentials is None:
        raise Unauthorized("send the API token as 'Authorization: Bearer TOKEN'")
    token: str = request.app.state.parts.token
    if not hmac.compare_digest(credentials.credentials.encode(), token.encode()):
        raise Unauthorized("this API token is not known; take the one that the service keeps in its token file")
    return "default"


Tenant = Annotated[str, Depends(tenant_of)]
