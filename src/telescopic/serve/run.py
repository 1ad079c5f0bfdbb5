"""Run a web application in this process."""

import socket

from fastapi import FastAPI

_MOST_CONNECTIONS = 1000
_IDLE = 75  # seconds; longer than load balancers keep a connection, or it is closed while they send a request


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
        taken.listen(_MOST_CONNECTIONS)
    except OSError:
        taken.close()
        raise
    return taken


def run_on(taken: socket.socket, app: FastAPI) -> None:
    """Serve on a bound socket until the process is told to stop (SIGINT, SIGTERM), and answer what was taken in.

    Args:
        taken: the socket.
        app: what `application` made.
    """
    import uvicorn

    config = uvicorn.Config(
        app,
        access_log=False,
        log_level="error",  # not a line for every request that is no HTTP: strangers would fill the disk
        lifespan="on",
        limit_concurrency=_MOST_CONNECTIONS,
        timeout_keep_alive=_IDLE,
        ws="none",
        server_header=False,
    )
    uvicorn.Server(config).run(sockets=[taken])
