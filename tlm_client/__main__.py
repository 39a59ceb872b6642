"""Entry point of the `tlm` command, also `python -m tlm_client`."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable


def _run_app() -> None:
    # Prevent the import of httpx's command line, which takes longer than the import of the rest of httpx.
    sys.modules["httpx._main"] = None  # type: ignore[assignment]
    from tlm_client.cli import app  # here, so that `main` handles a Ctrl-C during the imports

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # The encoding of stdout may lack some characters.
    try:
        app()
    except ModuleNotFoundError as error:
        command = "pip install '.[service]'"
        sys.exit(f"error: This command needs the package '{error.name}'. Run `{command}` in a checkout.")
    except OSError as error:
        from tlm_core.artifacts.faults import NO_SPACE  # here, because the help does not need this import

        if error.errno not in NO_SPACE:
            raise
        if sys.stdout is not None:
            # At its exit, Python flushes stdout, which would fail again on the full disk.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        reason = f"the disk is full ({error.strerror})"
        sys.exit(f"error: Cannot write, because {reason}. Free some space and try again.")


def main(command: Callable[[], None] = _run_app) -> None:
    """Run the command. Ctrl-C at any time exits with code 130, without a traceback."""
    try:
        command()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
