"""An application at an address of this machine."""

import os
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from purifiers.errors import ConfigError, require


def serve_app(
    make: Callable[[], Any], host: str, port: int, *, ready: Callable[[str], object] = lambda url: None, **options: Any
) -> None:
    """Serve an ASGI application over HTTP until SIGTERM or Ctrl-C; requests in flight are completed first.

    Args:
        make: makes it, once the address can be used.
        host: an address of this machine; ``127.0.0.1`` for this machine alone, ``0.0.0.0`` or ``::`` for all of them.
        port: 0 for any free one.
        ready: called with the URL as soon as it can be opened.
        options: of ``uvicorn.Config``.

    Raises:
        ConfigError: the address cannot be used, or uvicorn is not installed.
    """
    with suppress(KeyboardInterrupt), socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as bound:
        if os.name == "posix":  # on Windows this would share the port with another server
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind((host, port))
        except (OSError, OverflowError) as error:
            raise ConfigError(f"cannot listen at {host}, port {port}: {error}; choose another --port or --host") from error
        uvicorn = require("uvicorn")
        # Without this variable uvicorn would take the address of a client from a header of any process on this machine.
        behind_proxy = "FORWARDED_ALLOW_IPS" in os.environ
        server = uvicorn.Server(uvicorn.Config(make(), proxy_headers=behind_proxy, **options))
        bound.listen()
        address, taken = bound.getsockname()[:2]
        ready(f"http://{f'[{address}]' if ':' in address else address}:{taken}")
        # uvicorn raises the signal that stopped it once more when it has shut down.
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            server.run(sockets=[bound])
        finally:
            signal.signal(signal.SIGTERM, before)
