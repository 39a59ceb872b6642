"""Texts streamed from a data set in the layout of the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tlm_core.corpus.files import Faults, Row, Say, choose_text_column
from tlm_core.errors import InvalidRequest
from tlm_core.hub import HUB, hub_errors, refuse_folder


class HubName(NamedTuple):
    """What `hub:OWNER/NAME[:config][:split]` means; None where the name leaves it to the data set."""

    path: str
    config: str | None
    split: str


def parse_hub_name(name: str) -> tuple[str, list[str]]:
    """Path and the up to two further parts of `hub:OWNER/NAME[:config][:split]`. Raises InvalidRequest."""
    path, *rest = name.removeprefix(HUB).split(":")
    if not path or len(rest) > 2:
        raise InvalidRequest(f"'{name}' is no data set of the hub; write hub:OWNER/NAME, :config and :split may follow")
    return path, rest


def resolve_hub_name(name: str, configs: list[str]) -> HubName:
    """Say what the parts of `name` are for a data set with these configurations.

    A single part is a configuration if there is one of that name, and a split otherwise; the split is
    `train` if none is given. Raises InvalidRequest.
    """
    path, rest = parse_hub_name(name)
    if len(rest) == 1 and rest[0] not in configs:
        rest = ["", rest[0]]
    config, split = [*rest, "", ""][:2]
    if config and config not in configs:
        raise InvalidRequest(f"'{path}' has no configuration '{config}'; it has {', '.join(sorted(configs))}")
    if not config and len(configs) > 1 and "default" not in configs:
        raise InvalidRequest(
            f"'{path}' needs a configuration; write {HUB}{path}:{sorted(configs)[0]} or another of "
            f"{', '.join(sorted(configs))}"
        )
    return HubName(path, config or None, split or "train")


def stream_hub(name: str, text_column: str | None, say: Say, faults: Faults) -> Iterator[Row]:
    """Rows of `hub:OWNER/NAME[:config][:split]`, never more than a batch of them in memory.

    OWNER/NAME may be the absolute path of a local folder in that layout. Raises InvalidRequest, NotFound, Unavailable.
    """
    import datasets

    path, _ = parse_hub_name(name)
    if not Path(path).is_absolute():
        refuse_folder(path)
    with hub_errors(f"'{name}'"):
        configs = datasets.get_dataset_config_names(path)
        where = resolve_hub_name(name, configs)
        stream = datasets.load_dataset(where.path, where.config, split=where.split, streaming=True)
        yield from _rows(stream, name, text_column, say, faults)


def _rows(stream: object, name: str, text_column: str | None, say: Say, faults: Faults) -> Iterator[Row]:
    column: str | None = None
    for number, record in enumerate(stream, start=1):  # type: ignore[arg-type, var-annotated]
        if column is None:
            try:
                column = choose_text_column(list(record), text_column, lambda message: say(f"{name}: {message}"))
            except ValueError as error:
                faults.add(name, "no_text_column", str(error))
                return
        yield Row(number, record[column], record.get("source"), record.get("id"))
