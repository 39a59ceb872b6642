"""Alerts and dashboard: valid, over figures that the processes show, and explained in docs/operations.md."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from fastapi.routing import APIRoute

from services.api.dashboard import data_pages
from services.api.routes import corpora, datasets, uploads
from services.common.metrics import REGISTRY
from services.trainer.settings import METRICS_PORTS
from tests.checks.docs.blocks import blocks_of
from tests.support import ROOT

MONITORING = ROOT / "deploy" / "monitoring"
ALERTS: list[dict[str, Any]] = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"][0]["rules"]
DASHBOARD: dict[str, Any] = json.loads((MONITORING / "dashboard.json").read_text())
OF_SCRAPE = {"job", "instance"}


def shown_metrics() -> dict[str, set[str]]:
    """Return the names that Prometheus stores, with their labels."""
    names: dict[str, set[str]] = {"up": set()}
    for collector in list(REGISTRY._collector_to_names):
        labels = set(getattr(collector, "_labelnames", ()))
        for metric in collector.collect():
            for end in {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(metric.type, [""]):
                names[metric.name + end] = labels | ({"le"} if end == "_bucket" else set())
    for path in (ROOT / "services").rglob("*.py"):
        for name, labels in re.findall(r'Live\(\s*"(tlm_\w+)".*?(\{.*?\})?\)(?:,|\n|\])', path.read_text()):
            names.setdefault(name, set()).update(re.findall(r'"(\w+)":', labels))
    return names


SHOWN = shown_metrics()
_METRIC = re.compile(r"\b(?:tlm_\w+|up)\b")
_LABEL = re.compile(r"(\w+)(?:=~|!~|!=|=)\"|by \(([^)]+)\)")


def expressions() -> list[str]:
    return [rule["expr"] for rule in ALERTS] + [t["expr"] for panel in DASHBOARD["panels"] for t in panel["targets"]]


def unknown_labels(text: str) -> set[str]:
    """Return the labels in an expression that none of its metrics has."""
    labels = {label.strip() for matched, grouped in _LABEL.findall(text) for label in [matched, *grouped.split(",")]}
    return labels - {""} - OF_SCRAPE.union(*(SHOWN[name] for name in _METRIC.findall(text)))


@pytest.mark.parametrize("text", expressions())
def test_expression_uses_shown_figures(text: str) -> None:
    promql_parser.parse(text)
    names = {*_METRIC.findall(text)}
    assert names and names <= SHOWN.keys()
    assert unknown_labels(text) == set()


def test_labels_of_other_metrics_are_unknown() -> None:
    assert unknown_labels('sum by (cause, route) (tlm_held_jobs{task="x"})') == {"cause", "route", "task"}
    assert unknown_labels("sum by (le) (tlm_round_seconds_count)") == {"le"}


def test_limits_of_alerts_on_quantiles_are_bounds_of_buckets() -> None:
    # Prometheus interpolates within a bucket. So a limit inside a bucket also counts times below the limit.
    limits = [re.search(r"histogram_quantile\(.*\b(tlm_\w+)_bucket.*> ([\d.]+)$", rule["expr"]) for rule in ALERTS]
    quantiles = [match.groups() for match in limits if match]
    assert len(quantiles) == sum("histogram_quantile" in rule["expr"] for rule in ALERTS) > 0
    for name, limit in quantiles:
        assert vars(REGISTRY._names_to_collectors[name])["_upper_bounds"][:-2].count(float(limit)), name


def test_alerts_on_requests_ignore_probes() -> None:
    selectors = re.findall(r"tlm_request_seconds_\w+(\{.*?\})", "".join(rule["expr"] for rule in ALERTS))
    assert len(selectors) == 3
    assert all('route!~"/healthz|/readyz|/metrics"' in selector for selector in selectors)


def test_alert_on_slow_requests_ignores_uploads_and_imports() -> None:
    (rule,) = (rule for rule in ALERTS if rule["alert"] == "RequestsSlow")
    ignored = re.compile("|".join(re.findall(r'route!~"(.*?)"', rule["expr"])))
    routers = (corpora.router, datasets.router, uploads.router, data_pages.router)
    routes = [route for router in routers for route in router.routes if isinstance(route, APIRoute)]
    receives = re.compile(r"receive_form\(|request\.stream\(|uploads\.files\(|add_hub_dataset\(")
    received = {route.path for route in routes if receives.search(inspect.getsource(route.endpoint))}
    assert len(received) == 8
    assert received == {route.path for route in routes if ignored.fullmatch(route.path)}
    assert not ignored.fullmatch("/v1/jobs")


def test_documented_volumes_hold_the_token_in_a_folder() -> None:
    blocks = blocks_of(ROOT / "docs" / "operations.md")
    (example,) = (block.text for block in blocks if "image: prom/prometheus" in block.text)
    volumes = [volume.split(":") for volume in yaml.safe_load(example)["services"]["prometheus"]["volumes"]]
    config = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
    token = Path(config["scrape_configs"][0]["authorization"]["credentials_file"])
    (folder,) = (source for source, target, *_ in volumes if Path(target) == token.parent)
    (copied,) = (command for block in blocks for command in block.commands if "sudo install" in command)
    assert copied.endswith(f" {folder}/{token.name}"), "a mounted file would remain the old file"


def test_missing_process_of_each_job_raises_an_alert() -> None:
    config = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
    jobs = {scraped["job_name"] for scraped in config["scrape_configs"]} - {"workers"}
    (rule,) = (rule for rule in ALERTS if rule["alert"] == "ProcessDown")
    assert set(re.findall(r'absent\(up\{job="([\w-]+)"\}\)', rule["expr"])) == jobs
    assert all(re.match("tlm-", job) for job in jobs)


def test_each_alert_is_explained_and_has_a_severity() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    assert re.findall(r"^### (\w+)$", page, re.MULTILINE) == [rule["alert"] for rule in ALERTS]
    assert {rule["labels"]["severity"] for rule in ALERTS} == {"page", "warn"}


def test_page_explains_each_background_task() -> None:
    sources = (path.read_text() for path in (ROOT / "services").rglob("*.py"))
    names = {name for source in sources for name in re.findall(r'Background\("([^"]+)"\)', source)}
    section = (ROOT / "docs" / "operations.md").read_text().split("### TaskFailing")[1].split("###")[0]
    rows = [row.split("|")[1] for row in section.splitlines() if row.startswith("| `")]
    assert set(re.findall("`([^`]+)`", "".join(rows))) == names


def test_each_figure_is_on_the_dashboard() -> None:
    drawn = {name for panel in DASHBOARD["panels"] for t in panel["targets"] for name in _METRIC.findall(t["expr"])}
    ends = re.compile("_(bucket|sum|count|total)$")
    own = {ends.sub("", name) for name in SHOWN if name.startswith("tlm_") and "process_" not in name}
    assert own <= {ends.sub("", name) for name in drawn}
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_prometheus_reads_the_ports_of_the_containers() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    config = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
    *single, workers = config["scrape_configs"]
    for scraped in single:
        (target,) = scraped["dns_sd_configs"]
        (name,) = target["names"]
        variables, own = services[name]["environment"], f"TLM_{name.upper()}"
        port = str(target["port"])
        assert port in (variables.get(f"{own}_PORT"), variables.get(f"{own}_METRICS_PORT")), name
        assert scraped["job_name"] == f"tlm-{name}"
    assert (MONITORING / config["rule_files"][0]).exists()
    first = int(services["ray-worker"]["environment"]["TLM_TRAINER_WORKER_METRICS_PORT"])
    ports = list(range(first, first + METRICS_PORTS))
    assert [(entry["names"], entry["port"]) for entry in workers["dns_sd_configs"]] == [
        (["ray-worker"], p) for p in ports
    ]
    assert not re.match("tlm-", workers["job_name"]), "ports without a worker raise no alert"
    cluster = yaml.safe_load((ROOT / "deploy" / "kubernetes" / "base" / "ray.yaml").read_text())
    container = cluster["spec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]
    assert [port["containerPort"] for port in container["ports"] if port["name"].startswith("metrics")] == ports
    assert {"name": "TLM_TRAINER_WORKER_METRICS_PORT", "value": str(first)} in container["env"]
