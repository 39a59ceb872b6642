"""The retriever service: `python -m services.retriever`, settings from TLM_RETRIEVER_*."""

from __future__ import annotations

import logging

import uvicorn

from services.retriever.app import assemble
from services.retriever.settings import RetrieverSettings


def main() -> None:
    """Serve until SIGTERM."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    settings = RetrieverSettings()
    # The other services look in several times a second; a line for each look would bury everything else.
    uvicorn.run(assemble(settings), host=settings.host, port=settings.port, log_config=None, access_log=False)


if __name__ == "__main__":
    main()
