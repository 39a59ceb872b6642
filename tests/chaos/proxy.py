"""A TCP proxy on loopback that can cut connections, and delay or discard their data."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress


class Proxy:
    """Forwards connections to port `target`. Modes: `pass`, `cut`, `delay` (0.3 s a read), `half-open` (no data)."""

    def __init__(self, target: int) -> None:
        self._target, self._mode, self._open = target, "pass", set[socket.socket]()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def set(self, mode: str) -> None:
        """Change the mode. The start of `cut` and the end of `half-open` close all connections."""
        previous, self._mode = self._mode, mode
        if mode == "cut" or previous == "half-open":
            for end in list(self._open):
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.close()
        self.set("cut")

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self._target), timeout=2)
                server.settimeout(None)
            except OSError:
                client.close()
                continue
            self._open |= {client, server}
            for ends in ((client, server), (server, client)):
                threading.Thread(target=self._pump, args=ends, daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while (data := source.recv(65_536)) and self._mode != "cut":
                if self._mode == "delay":
                    time.sleep(0.3)
                if self._mode != "half-open":
                    target.sendall(data)
        for end in (source, target):
            self._open.discard(end)
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
