"""The address of a server: taken before a model is loaded, so that a port in use is told at once."""

from __future__ import annotations

import errno
import socket

from llmlab.errors import LabError


def bound_socket(host: str, port: int) -> socket.socket:
    """Returns a socket of an address, which nobody can reach yet.

    Raises:
        LabError: when the port is in use, or there is no such address here.
    """
    where = f"--host {host}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise LabError(f"is no address ({reason})", where=where) from None
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            raise LabError(
                f"port {port} is in use", remedy="end the program there, or choose another with --port"
            ) from None
        if error.errno == errno.EADDRNOTAVAIL:
            raise LabError("is no address of this machine", where=where) from None
        raise LabError(
            f"port {port} cannot be used ({error.strerror})", remedy="choose another with --port"
        ) from None
    return listening


def address_of(listening: socket.socket) -> str:
    """Returns the address of a socket, as clients take it."""
    host, port = listening.getsockname()[:2]
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{shown}:{port}"
