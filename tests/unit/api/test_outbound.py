"""Requests to URLs of users: private addresses are refused."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress

import httpx
import pytest

from services.api.outbound import Outbound
from services.api.webhook_delivery import sign
from tlm_core.errors import InvalidRequest


def at(*addresses: str, private: bool = False, seen: list[httpx.Request] | None = None) -> Outbound:
    """Return an Outbound that resolves every host to these addresses."""

    def answer(request: httpx.Request) -> httpx.Response:
        if seen is not None:
            seen.append(request)
        return httpx.Response(204)

    def resolve(_: str, __: int) -> Sequence[str]:
        return addresses

    return Outbound(private=private, transport=httpx.MockTransport(answer), resolve=resolve)


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.0.0.7", "192.168.1.1", "172.16.0.1", "169.254.169.254", "0.0.0.0", "100.64.0.1", "::1", "fc00::1",
     "fe80::1%eth0", "::ffff:127.0.0.1", "224.0.0.1", "255.255.255.255", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::1",
     "::7f00:1", "::ffff:0:7f00:1", "2001:0:4136:e378:8000:63bf:f5ff:fff8", "fec0::1", "ff0e::1"],
)  # fmt: skip
def test_private_address_is_refused_even_next_to_a_public_one(address: str) -> None:
    with pytest.raises(InvalidRequest, match="has the private address"):
        at("93.184.216.34", address).check("https://example.com/hook")
    at("93.184.216.34", address, private=True).check("http://example.com/hook")


@pytest.mark.parametrize("address", ["2606:4700::1111", "::ffff:93.184.216.34", "64:ff9b::5db8:d822"])
def test_public_ipv6_address_is_accepted(address: str) -> None:
    at(address).check("https://example.com/hook")


@pytest.mark.parametrize(
    "url",
    ["http://example.com/", "ftp://example.com/", "https://", "https://me:secret@example.com/", "nonsense", "//x"],
)
def test_url_must_be_plain_https(url: str) -> None:
    with pytest.raises(InvalidRequest):
        at("93.184.216.34").check(url)


@pytest.mark.parametrize(
    ("url", "reason"),
    [("https://xn--a/", "Invalid URL 'https://xn--a/'"), ("https://example.com:0/", "Invalid port 0"),
     ("https://example.com:99999/", "Invalid port 99999")],
)  # fmt: skip
def test_invalid_host_or_port_is_refused(url: str, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        at("93.184.216.34").check(url)


@pytest.mark.parametrize("url", ["https://a..example.com/x", f"https://{'a' * 70}.example.com/x"])
def test_invalid_host_name_is_refused(url: str) -> None:
    with pytest.raises(InvalidRequest, match="Invalid host name"):
        Outbound(private=False).check(url)
    assert Outbound(private=False).post(url, b"", {})[0] is None


def test_request_uses_the_checked_address() -> None:
    seen: list[httpx.Request] = []
    assert at("93.184.216.34", seen=seen).post("https://example.com:8443/a?b=c", b"{}", {"x": "y"}) == (204, None)
    (request,) = seen
    assert (request.url.host, request.url.raw_path) == ("93.184.216.34", b"/a?b=c")
    assert (request.headers["host"], request.extensions["sni_hostname"]) == ("example.com:8443", "example.com")
    assert request.headers["user-agent"]  # Some firewalls refuse requests without it.


def test_host_is_encoded_by_idna_2008() -> None:
    hosts, seen = list[str](), list[httpx.Request]()

    def resolve(host: str, _: int) -> Sequence[str]:
        hosts.append(host)
        return ["93.184.216.34"]

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(204)

    Outbound(private=False, transport=httpx.MockTransport(answer), resolve=resolve).post("https://faß.de/", b"", {})
    names = [*hosts, seen[0].headers["host"], seen[0].extensions["sni_hostname"]]
    assert set(names) == {"xn--fa-hia.de"}  # not fass.de, another domain


@pytest.mark.parametrize(
    ("first", "expected"),
    [(b"HTTP/1.1 200 OK\r\nX: ", (None, "The endpoint did not respond within 4 s.")),
     (b"HTTP/1.1 200 OK\r\n\r\n", (200, None))],
)  # fmt: skip
def test_endless_response_ends_within_the_limit(first: bytes, expected: tuple[int | None, str | None]) -> None:
    closed = threading.Event()

    def drip(server: socket.socket) -> None:
        connection = server.accept()[0]
        with connection, suppress(OSError):
            connection.sendall(first)
            while True:
                connection.sendall(b"x")
                time.sleep(0.05)
        closed.set()

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=drip, args=(server,), daemon=True).start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
        assert Outbound(private=True, seconds=4).post(url, b"{}", {}) == expected
        assert closed.wait(20)


def test_host_that_moves_to_a_private_address_gets_no_request() -> None:
    seen: list[httpx.Request] = []
    status, error = at("10.0.0.7", seen=seen).post("https://example.com/", b"{}", {})
    assert (status, seen) == (None, []) and error is not None and "private address" in error


def test_signature_follows_standard_webhooks() -> None:
    # The example of the libraries of Standard Webhooks.
    signature = sign(
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}'
    )
    assert signature == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
