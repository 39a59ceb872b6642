"""Texts streamed from a dataset in the layout of the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tlm_core.corpus.files import Row, rows_of
from tlm_core.errors import InvalidRequest
from tlm_core.hub import hub_errors, refuse_folder, refuse_outside_files
from tlm_core.names import HUB
from tlm_core.tables.findings import Findings
from tlm_core.tables.records import Records


class HubName(NamedTuple):
    """The parts of `hub:OWNER/NAME[:config][:split]`; config: None for the only or default configuration."""

    path: str
    config: str | None
    split: str


def parse_hub_name(name: str) -> tuple[str, list[str]]:
    """Return the path and up to two further parts of `hub:OWNER/NAME[:config][:split]`. Raises InvalidRequest."""
    path, *rest = name.removeprefix(HUB).split(":")
    if not path or len(rest) > 2:
        raise InvalidRequest(f"Invalid hub dataset '{name}'. Expected hub:OWNER/NAME[:config][:split].")
    return path, rest


def resolve_hub_name(name: str, configs: list[str]) -> HubName:
    """Return the parts of `name` for a dataset that has the configurations `configs`.

    A single part after the path is a configuration if `configs` has that name, and a split otherwise. The default
    split is `train`. Raises InvalidRequest.
    """
    path, rest = parse_hub_name(name)
    if len(rest) == 1 and rest[0] not in configs:
        rest = ["", rest[0]]
    config, split = [*rest, "", ""][:2]
    valid = f"Valid configurations: {', '.join(sorted(configs))}."
    if config and config not in configs:
        raise InvalidRequest(f"'{path}' has no configuration '{config}'. {valid}")
    if not config and len(configs) > 1 and "default" not in configs:
        raise InvalidRequest(f"'{path}' needs a configuration, such as {HUB}{path}:{sorted(configs)[0]}. {valid}")
    return HubName(path, config or None, split or "train")


def stream_hub(name: str, text_column: str | None, findings: Findings) -> Iterator[Row]:
    """Rows of `hub:OWNER/NAME[:config][:split]`, with at most one batch of rows in memory.

    The absolute path of a local copy may replace OWNER/NAME. Raises InvalidRequest, NotFound, Unavailable.
    """
    import datasets

    path, _ = parse_hub_name(name)
    if not Path(path).is_absolute():
        refuse_folder(path)
    with hub_errors(f"'{name}'"):
        refuse_outside_files(path)
        configs = datasets.get_dataset_config_names(path)
        source = resolve_hub_name(name, configs)
        stream = datasets.load_dataset(source.path, source.config, split=source.split, streaming=True)
        yield from rows_of(Records([], lambda _: enumerate(stream, start=1)), text_column, name, findings)
