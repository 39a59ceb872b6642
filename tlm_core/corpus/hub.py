"""Stream texts from a dataset in the layout of the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tlm_core.corpus.files import Row, rows_of
from tlm_core.errors import InvalidRequest
from tlm_core.hub import hub_errors, refuse_folder, refuse_outside_files
from tlm_core.names import HUB
from tlm_core.tables.findings import Findings
from tlm_core.tables.records import Records


def parse_hub_name(name: str) -> tuple[str, list[str]]:
    """Return OWNER/NAME and the list of the other parts of `hub:OWNER/NAME[:config][:split]`. Raises InvalidRequest."""
    path, *parts = name.removeprefix(HUB).split(":")
    if not path or len(parts) > 2:
        raise InvalidRequest(f"Invalid hub dataset '{name}'. Expected hub:OWNER/NAME[:config][:split].")
    return path, parts


def config_and_split(path: str, parts: list[str], configs: list[str]) -> tuple[str | None, str]:
    """Return the configuration and the split of a hub dataset. The configuration None is the only or default one.

    path, parts: results of `parse_hub_name`. configs: all configurations of the dataset. A single part names a
    configuration in `configs`, or else a split. The default split is `train`. Raises InvalidRequest.
    """
    if len(parts) == 1 and parts[0] not in configs:
        parts = ["", *parts]
    config, split = [*parts, "", ""][:2]
    valid = f"Valid configurations: {', '.join(sorted(configs))}."
    if config and config not in configs:
        raise InvalidRequest(f"'{path}' has no configuration '{config}'. {valid}")
    if not config and len(configs) > 1 and "default" not in configs:
        raise InvalidRequest(f"'{path}' needs a configuration, such as {HUB}{path}:{sorted(configs)[0]}. {valid}")
    return config or None, split or "train"


def stream_hub(name: str, text_column: str | None, findings: Findings) -> Iterator[Row]:
    """Yield the rows of `hub:OWNER/NAME[:config][:split]`, with at most one batch of rows in memory.

    The absolute path of a local copy can replace OWNER/NAME. Raises InvalidRequest, NotFound and Unavailable.
    """
    import datasets

    path, parts = parse_hub_name(name)
    if not Path(path).is_absolute():
        refuse_folder(path)
    with hub_errors(f"'{name}'"):
        refuse_outside_files(path)
        config, split = config_and_split(path, parts, datasets.get_dataset_config_names(path))
        stream = datasets.load_dataset(path, config, split=split, streaming=True)
        yield from rows_of(Records([], lambda _: enumerate(stream, start=1)), text_column, name, findings)
