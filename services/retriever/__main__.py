"""The retriever service: `python -m services.retriever`, with settings from TLM_RETRIEVER_* variables."""

from __future__ import annotations

import logging

import uvicorn

from services.common.logs import set_up_logging
from services.retriever.app import RetrieverSettings, assemble


def main() -> None:
    """Serve the API until SIGTERM. Write no access log, because the other services poll several times per second."""
    set_up_logging("retriever")
    logging.getLogger("opensearch").setLevel(logging.ERROR)  # The library logs every request.
    settings = RetrieverSettings()
    uvicorn.run(assemble(settings), host=settings.host, port=settings.port, log_config=None, access_log=False,
                timeout_graceful_shutdown=10)  # fmt: skip


if __name__ == "__main__":
    main()
