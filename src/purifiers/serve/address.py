"""The address that a server listens at."""

import os
import socket

from purifiers.errors import ConfigError


def bind(host: str, port: int) -> socket.socket:
    """A socket bound to an address of this machine; it refuses connections until it listens. Raises ConfigError."""
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        if os.name == "posix":  # on Windows this would share the port with another server
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except (OSError, OverflowError) as error:
        bound.close()
        raise ConfigError(f"cannot listen at {host}, port {port}: {error}; choose another --port or --host") from error
    return bound
