"""Run a web application in this process."""

import socket

from fastapi import FastAPI

_MOST_CONNECTIONS = 1000


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
        log_level="warning",
        lifespan="on",
        limit_concurrency=_MOST_CONNECTIONS,
        ws="none",
        server_header=False,
    )
    uvicorn.Server(config).run(sockets=[taken])
