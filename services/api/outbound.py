"""HTTP requests to the endpoints of webhooks, whose addresses users choose.

The service refuses private addresses unless the operator allows them. Otherwise users could send requests to hosts of
the private network, such as the metadata service of a cloud.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

import httpx

from tlm_core.errors import InvalidRequest

Resolve = Callable[[str, int], Sequence[str]]

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_UNICAST = ipaddress.IPv6Network("2000::/3")  # all public IPv6 addresses, except some that embed an IPv4 address


def resolve(host: str, port: int) -> list[str]:
    """Return the addresses of a host. Raises OSError, and UnicodeError for an invalid name."""
    entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in entries))


class Outbound:
    """Sends POST requests to endpoints of users. private: whether plain http and private addresses are allowed.

    seconds: the time limit of a request, without the look-up of the host. transport, resolve: replace the network and
    the resolver in tests.
    """

    def __init__(
        self,
        *,
        private: bool,
        seconds: float = 10.0,
        transport: httpx.AsyncBaseTransport | None = None,
        resolve: Resolve = resolve,
    ) -> None:
        self._private = private
        self._seconds = seconds
        self._transport = transport
        self._resolve = resolve
        self._tls = httpx.create_ssl_context(trust_env=False)

    def check(self, url: str) -> None:
        """Raise InvalidRequest for a URL that `post` refuses. Accepts a host that has no IP address at the moment."""
        parsed = self._parsed(url)
        with suppress(OSError):
            self._address(parsed)

    def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> tuple[int | None, str | None]:
        """Send a POST request. Return (HTTP status, None), or (None, error message) if there is no response.

        The method follows no redirect, and does not read the body of the response.
        """
        try:
            parsed = self._parsed(url)
            # Connect to the checked address, because a second look-up could return another address.
            target = parsed.copy_with(host=self._address(parsed))
            extensions = {"sni_hostname": _host(parsed)}
            all_headers = {**headers, "Host": parsed.netloc.decode("ascii")}
            return asyncio.run(self._post(target, body, all_headers, extensions)), None
        except TimeoutError:
            return None, f"The endpoint did not respond within {self._seconds:g} s."
        except httpx.ConnectTimeout:
            return None, f"The endpoint did not accept the connection within {self._seconds / 2:g} s."
        except (httpx.HTTPError, httpx.InvalidURL, OSError, InvalidRequest) as error:
            return None, str(error) or type(error).__name__

    async def _post(
        self, url: httpx.URL, body: bytes, headers: Mapping[str, str], extensions: Mapping[str, str]
    ) -> int:
        # asyncio limits the whole request, because the timeout of httpx limits only each read. The timeout of httpx is
        # necessary for `connect`, because httpx leaves the connection open if asyncio cancels a TLS handshake.
        timeout = httpx.Timeout(None, connect=self._seconds / 2)
        async with (
            asyncio.timeout(self._seconds),
            httpx.AsyncClient(verify=self._tls, timeout=timeout, transport=self._transport, trust_env=False) as client,
            client.stream("POST", url, content=body, headers=headers, extensions=extensions) as response,
        ):
            return response.status_code

    def _parsed(self, url: str) -> httpx.URL:
        """Return the parsed URL. Raises InvalidRequest if the URL is malformed, or if a part of it is not allowed."""
        try:
            parsed = httpx.URL(url)
            if not parsed.host:  # This property decodes a name that begins with xn--, and can raise UnicodeError.
                raise InvalidRequest(f"Invalid URL '{url[:200]}'. It has no host. Expected https://HOST/PATH.")
        except (httpx.InvalidURL, UnicodeError) as error:
            raise InvalidRequest(f"Invalid URL '{url[:200]}': {error}. Expected https://HOST/PATH.") from error
        if parsed.scheme != "https" and not (self._private and parsed.scheme == "http"):
            schemes = "http:// or https://" if self._private else "https://"
            raise InvalidRequest(f"Invalid webhook URL '{url[:200]}'. It must begin with {schemes}.")
        if parsed.userinfo:
            raise InvalidRequest("The webhook URL contains a user or password. Remove this part of the URL.")
        if parsed.port is not None and not 1 <= parsed.port <= 65_535:
            raise InvalidRequest(f"Invalid port {parsed.port} in the webhook URL. Use a port from 1 to 65535.")
        return parsed

    def _address(self, url: httpx.URL) -> str:
        """Return the host's first IP address. Raises OSError, and InvalidRequest for an invalid or private host."""
        port = url.port or (443 if url.scheme == "https" else 80)
        try:
            addresses = self._resolve(_host(url), port)
        except UnicodeError as error:
            raise InvalidRequest(
                f"Invalid host name '{url.host[:200]}'. Each part between dots must have 1 to 63 characters."
            ) from error
        for address in addresses:
            if not self._private and not _is_public(address):
                raise InvalidRequest(
                    f"{url.host} has the private address {address}. Use a public host, or ask the operator to set "
                    "TLM_API_WEBHOOK_PRIVATE=true."
                )
        if not addresses:
            raise OSError(f"The host '{url.host}' has no IP address. Check the URL of the webhook.")
        return addresses[0]


def _host(url: httpx.URL) -> str:
    """Return the host in ASCII. Python would encode a Unicode name by IDNA 2003, which can give another domain."""
    return url.raw_host.decode("ascii")


def _is_public(text: str) -> bool:
    """Return whether an address is public. If an IPv6 address embeds an IPv4 address, check the IPv4 address."""
    address = ipaddress.ip_address(text.split("%", 1)[0])
    if isinstance(address, ipaddress.IPv6Address):
        nat64 = ipaddress.IPv4Address(address.packed[-4:]) if address in _NAT64 else None
        embedded = address.ipv4_mapped or address.sixtofour or nat64
        if embedded is None:
            return address in _UNICAST and address.is_global
        address = embedded
    return address.is_global and not address.is_multicast
