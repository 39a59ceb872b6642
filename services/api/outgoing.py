"""Requests to addresses that users name. What is not on the public internet is refused, unless the operator allows it:
an address of the cloud's metadata service, or of a neighbour on the private network, is not for callers."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Mapping, Sequence

import httpx

from tlm_core.errors import InvalidRequest

Resolve = Callable[[str, int], Sequence[str]]


def resolve(host: str, port: int) -> list[str]:
    """The addresses of a host, as the system knows them. Raises OSError, UnicodeError for what can be no name."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class Outgoing:
    """Posts to endpoints. private: whether plain http and addresses of private networks are allowed.

    transport, resolve: for tests.
    """

    def __init__(
        self,
        *,
        private: bool,
        timeout: float = 10.0,
        transport: httpx.BaseTransport | None = None,
        resolve: Resolve = resolve,
    ) -> None:
        self._private = private
        self._resolve = resolve
        self._http = httpx.Client(timeout=timeout, transport=transport, trust_env=False, follow_redirects=False)

    def check(self, url: str) -> None:
        """Raise InvalidRequest for a URL to which nothing would be sent. A host without address may get one later."""
        parsed = _parsed(url)
        if parsed.scheme != "https" and not (self._private and parsed.scheme == "http"):
            raise InvalidRequest("a webhook's URL must begin with https://")
        if parsed.userinfo:
            raise InvalidRequest("a webhook's URL cannot hold a user or password; the signature says who sends")
        try:
            self._address(parsed)
        except OSError:
            return

    def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> tuple[int | None, str | None]:
        """(status, None), or (None, why there was no answer). Redirects are answers like others."""
        try:
            self.check(url)
            parsed = _parsed(url)
            # The request goes to the address that was checked: a second look-up could give another one.
            target = parsed.copy_with(host=self._address(parsed))
            named = {**headers, "Host": parsed.netloc.decode("ascii")}
            extensions = {"sni_hostname": parsed.host}
            with self._http.stream("POST", target, content=body, headers=named, extensions=extensions) as answer:
                return answer.status_code, None
        except (httpx.HTTPError, httpx.InvalidURL, OSError, InvalidRequest) as error:
            return None, str(error) or type(error).__name__

    def _address(self, url: httpx.URL) -> str:
        """The first address of the host. Raises InvalidRequest if any of them is not public, OSError."""
        port = url.port or (443 if url.scheme == "https" else 80)
        try:
            found = self._resolve(url.host, port)
        except UnicodeError as error:
            raise InvalidRequest(
                f"'{url.host[:200]}' is no host name; between its dots there are 1 to 63 characters each"
            ) from error
        for one in found:
            if not self._private and not _is_public(one):
                raise InvalidRequest(
                    f"{url.host} is at {one}, which is not on the public internet; ask the operator to set "
                    "TLM_API_WEBHOOK_PRIVATE if that is meant"
                )
        if not found:
            raise OSError(f"{url.host} has no address")
        return found[0]


def _is_public(text: str) -> bool:
    address = ipaddress.ip_address(text.split("%", 1)[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address.is_global and not address.is_multicast


def _parsed(url: str) -> httpx.URL:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise InvalidRequest(f"'{url[:200]}' is no URL: {error}") from error
    if not parsed.host:
        raise InvalidRequest(f"'{url[:200]}' names no host")
    return parsed
