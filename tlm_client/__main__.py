"""Entry point of the `tlm` command, also `python -m tlm_client`."""

from __future__ import annotations

import sys
from collections.abc import Callable


def _command() -> None:
    # Loading takes a second on a busy machine, and Ctrl-C is not to show a traceback then either.
    from tlm_client.cli import app

    app()


def main(command: Callable[[], None] = _command) -> None:
    """Run the command; Ctrl-C at any moment, while it is being loaded too, is exit code 130."""
    try:
        command()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
