"""Run a web application in this process."""

import math
import socket
import sys

import uvicorn
from fastapi import FastAPI

from telescopic.limits import Limits
from telescopic.serve.connections import Connection, Server

_WAITING = 1000  # connections that wait to be taken in


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Args:
        host: an address of this machine, or a name for one.
        port: 0 for a free one.

    Raises:
        OSError: if that cannot be.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol said, asyncio sends at once what is written; otherwise a keep-alive connection waits 40 ms for
    # the other side's acknowledgement between an answer's head and its body.
    taken = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind((host, port))
        taken.listen(_WAITING)
    except OSError:
        taken.close()
        raise
    return taken


def run_on(taken: socket.socket, app: FastAPI, limits: Limits | None = None) -> None:
    """Serve on a bound socket until the process is told to stop (SIGINT, SIGTERM), and answer what was taken in.

    Args:
        taken: the socket.
        app: what `application` made.
        limits: of connections.
    """
    limits = limits or Limits()
    refuses = staticmethod(getattr(app.state, "refuses", Connection.refuses))
    config = uvicorn.Config(
        app,
        http=type("Limited", (Connection,), {"limits": limits, "refuses": refuses}),
        access_log=False,
        log_level="error",  # not a line for every request that is no HTTP: strangers would fill the disk
        lifespan="on",
        timeout_keep_alive=math.ceil(limits.idle_seconds),
        timeout_graceful_shutdown=math.ceil(limits.stop_seconds),
        ws="none",
        server_header=False,
    )
    # Seconds after which a thread that waits is let go on: a pass has a dozen such places, and who is refused while the
    # queue is full must not hold it up at each.
    sys.setswitchinterval(0.0005)
    Server(config).run(sockets=[taken])
