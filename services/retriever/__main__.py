"""The retriever service: `python -m services.retriever`, settings from TLM_RETRIEVER_*."""

from __future__ import annotations

import logging

import uvicorn

from services.common.logs import set_up_logging
from services.retriever.app import assemble
from services.retriever.settings import RetrieverSettings


def main() -> None:
    """Serve until SIGTERM."""
    set_up_logging("retriever")
    logging.getLogger("opensearch").setLevel(logging.ERROR)  # it tells of every request; faults become errors of ours
    settings = RetrieverSettings()
    # The other services look in several times a second; a line for each look would bury everything else.
    uvicorn.run(assemble(settings), host=settings.host, port=settings.port, log_config=None, access_log=False)


if __name__ == "__main__":
    main()
