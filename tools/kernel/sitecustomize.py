"""Cut a Python process off the network: every address but loopback is refused.

Python imports a module of this name at start-up, so it holds for all that the process
does. `run_notebooks.py` puts this folder on PYTHONPATH of the kernels that it starts.
"""

import ipaddress
import socket
from typing import Any

import shaken  # noqa: F401  beside this file; does nothing unless it is asked for

_connect = socket.socket.connect
_connect_ex = socket.socket.connect_ex
_sendto = socket.socket.sendto
_getaddrinfo = socket.getaddrinfo


class NetworkBlocked(OSError):
    """A run without network tried to use it."""


def allowed(host: Any) -> bool:
    """Whether `host` names this machine itself."""
    if isinstance(host, bytes):
        host = host.decode()
    if host in (None, "", "localhost"):
        return True
    try:
        return ipaddress.ip_address(str(host).split("%")[0]).is_loopback
    except ValueError:
        return False


def refuse_unless_allowed(address: Any) -> None:
    """Raise unless `address` is loopback, or no internet address at all (a pipe)."""
    if isinstance(address, tuple) and not allowed(address[0]):
        raise NetworkBlocked(
            f"This run is cut off from the network, but something called {address[0]}. "
            "Expected: everything a notebook needs is on this machine."
        )


def connect(self: socket.socket, address: Any) -> None:
    refuse_unless_allowed(address)
    return _connect(self, address)


def connect_ex(self: socket.socket, address: Any) -> int:
    refuse_unless_allowed(address)
    return _connect_ex(self, address)


def sendto(self: socket.socket, data: Any, *rest: Any) -> int:
    refuse_unless_allowed(rest[-1])
    return _sendto(self, data, *rest)


def getaddrinfo(host: Any, *rest: Any, **named: Any) -> Any:
    refuse_unless_allowed((host,))
    return _getaddrinfo(host, *rest, **named)


socket.socket.connect = connect  # type: ignore[method-assign]
socket.socket.connect_ex = connect_ex  # type: ignore[method-assign]
socket.socket.sendto = sendto  # type: ignore[method-assign,assignment]
socket.getaddrinfo = getaddrinfo
