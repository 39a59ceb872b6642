"""The connections that the NetworkPolicies allow in total."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from tests.checks.deploy.manifests import KUBERNETES, Object, Workload, base_files, environment, of_kind, workloads

ANY_PORT = 40_000  # one that no policy names
PORTS = (6379, 8265, 8321, 8322, 9200, ANY_PORT)
RAY = {"ray-head", "ray-worker"}
ALLOWED = {
    ("api", "redis", 6379),
    ("api", "retriever", 8322),
    ("loader", "redis", 6379),
    ("loader", "retriever", 8322),
    ("trainer", "redis", 6379),
    ("trainer", "retriever", 8322),
    ("trainer", "ray-head", 8265),
    ("retriever", "opensearch", 9200),
    ("retriever", "redis", 6379),
    ("ray-head", "redis", 6379),
    ("ray-worker", "redis", 6379),
    *((source, target, port) for source in RAY for target in RAY for port in PORTS),
}


HUB = (yaml.safe_load((KUBERNETES / "components" / "hub" / "network.yaml").read_text(encoding="utf-8")),)
LOADS = workloads(base_files())
PAIRS = [(source, target, port) for source in LOADS for target in LOADS for port in PORTS]


def test_pods_reach_only_their_dependencies() -> None:
    assert {(s.component, t.component, port) for s, t, port in PAIRS if _lets_out(s, t, port)} == ALLOWED


def test_pods_accept_only_their_clients() -> None:
    anyone_to_the_gateway = {(source.component, "api", 8321) for source in LOADS}
    let_in = {(s.component, t.component, port) for s, t, port in PAIRS if _lets_in(t, s, port)}
    assert let_in == ALLOWED | anyone_to_the_gateway


def test_only_the_gateway_is_reachable_from_outside() -> None:
    open_ports = {(load.component, port) for load in LOADS for port in PORTS if _lets_in(load, None, port)}
    assert open_ports == {("api", 8321)}


@pytest.mark.parametrize(("optional", "components"), [((), {"api", "loader"}), (HUB, {"api", "loader", "ray-worker"})])
def test_only_gateway_and_loader_reach_public_addresses(optional: tuple[Object, ...], components: set[str]) -> None:
    out = {
        load.component: rule["to"]
        for load in LOADS
        for policy in _policies(load, "Egress", base_files() + optional)
        for rule in policy["egress"] or []
        if any("ipBlock" in peer for peer in rule["to"])
    }
    assert set(out) == components
    for (peer,) in out.values():
        assert {"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16"} <= set(peer["ipBlock"]["except"])


@pytest.mark.parametrize("load", LOADS, ids=lambda load: load.component)
def test_policies_allow_every_url_in_the_environment(load: Workload) -> None:
    services = of_kind(base_files(), "Service")
    for name, value in environment(load, base_files()).items():
        if name.endswith("_URL"):
            url = urlsplit(value)
            # The operator creates this Service for the cluster `ray`.
            target = "ray-head" if url.hostname == "ray-head-svc" else url.hostname
            assert target == "ray-head" or url.port in {port["port"] for port in services[target]["spec"]["ports"]}
            assert (load.component, target, url.port) in ALLOWED, name


def _policies(load: Workload, direction: str, objects: tuple[Object, ...] = base_files()) -> list[dict[str, Any]]:
    specs = [policy["spec"] for policy in of_kind(objects, "NetworkPolicy").values()]
    return [
        {"ingress": [], "egress": []} | spec
        for spec in specs
        if direction in spec["policyTypes"] and _matches(spec["podSelector"], load)
    ]


def _lets_out(source: Workload, target: Workload, port: int) -> bool:
    policies = _policies(source, "Egress")
    return not policies or any(_rule_fits(rule, "to", target, port) for spec in policies for rule in spec["egress"])


def _lets_in(target: Workload, source: Workload | None, port: int) -> bool:
    """Return whether `target` accepts `source`; None means a client outside the namespace."""
    policies = _policies(target, "Ingress")
    return not policies or any(_rule_fits(rule, "from", source, port) for spec in policies for rule in spec["ingress"])


def _rule_fits(rule: Object, side: str, other: Workload | None, port: int) -> bool:
    fits_port = "ports" not in rule or port in {item["port"] for item in rule["ports"]}
    peers = rule.get(side)
    if peers is None:
        return fits_port
    # A peer with a namespace selector or an address block does not match the pods of this namespace.
    return fits_port and any(
        set(peer) == {"podSelector"} and other is not None and _matches(peer["podSelector"], other) for peer in peers
    )


def _matches(selector: Object, load: Workload) -> bool:
    required = [(key, [value]) for key, value in selector.get("matchLabels", {}).items()]
    for expression in selector.get("matchExpressions", []):
        assert expression["operator"] == "In"
        required.append((expression["key"], expression["values"]))
    return all(load.labels.get(key) in values for key, values in required)
