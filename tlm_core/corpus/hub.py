"""Texts streamed from a data set in the layout of the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from tlm_core.corpus.files import Faults, Row, Say, choose_text_column
from tlm_core.errors import InvalidRequest, NotFound, Unavailable

PREFIX = "hub:"


class HubName(NamedTuple):
    """What `hub:OWNER/NAME[:config][:split]` means; None where the name leaves it to the data set."""

    path: str
    config: str | None
    split: str


def parse_hub_name(name: str) -> tuple[str, list[str]]:
    """Path and the up to two further parts of `hub:OWNER/NAME[:config][:split]`. Raises InvalidRequest."""
    path, *rest = name.removeprefix(PREFIX).split(":")
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
            f"'{path}' needs a configuration; write {PREFIX}{path}:{sorted(configs)[0]} or another of "
            f"{', '.join(sorted(configs))}"
        )
    return HubName(path, config or None, split or "train")


def stream_hub(name: str, text_column: str | None, say: Say, faults: Faults) -> Iterator[Row]:
    """Rows of `hub:OWNER/NAME[:config][:split]`, never more than a batch of them in memory.

    OWNER/NAME may be a local folder in the same layout. Raises InvalidRequest, NotFound, Unavailable.
    """
    import datasets
    import httpx

    try:
        configs = datasets.get_dataset_config_names(parse_hub_name(name)[0])
        where = resolve_hub_name(name, configs)
        stream = datasets.load_dataset(where.path, where.config, split=where.split, streaming=True)
        yield from _rows(stream, name, text_column, say, faults)
    except FileNotFoundError as error:  # DatasetNotFoundError among them
        raise NotFound(f"'{name}' is not on the hub or not public; check the name: {_first_line(error)}") from error
    except (
        ValueError,
        RuntimeError,
        datasets.exceptions.DatasetsError,
    ) as error:  # RuntimeError: needs code of its own
        raise InvalidRequest(f"'{name}' cannot be read as it is: {_first_line(error)}") from error
    except (OSError, httpx.HTTPError) as error:
        raise Unavailable(
            f"the hub did not give '{name}': {_first_line(error)}; check the network, try again"
        ) from error


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


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
