"""`telescopic serve`: a pack behind HTTP."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from telescopic.cli.shown import Backend, tell, working
from telescopic.limits import Limits

_BOUNDS = Limits()
OTHERS = (
    f"Other bounds: a request's head has {_BOUNDS.head:,} bytes and {_BOUNDS.headers} headers (431), and comes within "
    f"{_BOUNDS.head_seconds:g} s, its body within {_BOUNDS.body_seconds:g} s (408); all long bodies together have "
    f"{_BOUNDS.bodies:,} bytes (503); {_BOUNDS.pipelined} requests wait for the one before (429); a connection waits "
    f"{_BOUNDS.idle_seconds:g} s; {_BOUNDS.decoders} images are decoded at once, {_BOUNDS.decoding} wait (503), each "
    f"takes {_BOUNDS.decoding_seconds:g} s (422); at the end, what was taken in is answered in "
    f"{_BOUNDS.stop_seconds:g} s."
)


def serve(
    pack: Annotated[Path, typer.Argument(help="The folder that telescopic pack made.")],
    slo_ms: Annotated[
        float, typer.Option(min=0.01, help="Milliseconds within which an answer is due, unless a request says else.")
    ] = 50,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 is every network of this machine.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of a pass. (default: what telescopic bench found best)")
    ] = None,
    backend: Backend = "onnxruntime",
    max_batch: Annotated[int, typer.Option(min=1, help="Most examples in a pass, and in a request.")] = 32,
    max_waiting: Annotated[
        int | None,
        typer.Option(help="Most examples that wait. (default: what the fastest member answers within the SLO)"),
    ] = None,
    max_body: Annotated[int, typer.Option(min=1024, help="Most bytes of a request's body.")] = _BOUNDS.body,
    max_connections: Annotated[
        int, typer.Option(min=10, help="Connections at once; who asks nothing makes room.")
    ] = _BOUNDS.connections,
    max_pixels: Annotated[int, typer.Option(min=1, help="Most pixels of an image file.")] = _BOUNDS.pixels,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(help="A name by which it may be called, beside addresses and localhost; * for any. Repeatable."),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(help="A site whose pages may ask, such as https://example.org. Repeatable."),
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="A file with a token, without which nothing is answered but /health.")
    ] = None,
) -> None:
    """Serve a pack over HTTP: POST /predict, and a page to look at on GET /.

    What waits is answered together, by the largest member that is in time; if the smallest is too slow, 503.
    """
    from telescopic.engine import Engine
    from telescopic.serve import application, listening, run_on

    token = None if token_file is None else _token(token_file)
    bounds = replace(_BOUNDS, body=max_body, connections=max_connections, pixels=max_pixels)
    try:  # before anything is loaded or measured; who comes early waits
        taken = listening(host, port)
    except OSError as error:
        raise OSError(f"cannot listen on {host}, port {port}: {error.strerror}. Name another with --port") from error
    with taken:
        with working("loading") as show:
            engine = Engine(pack, threads=threads, backend=backend)
            app = application(
                engine,
                slo_ms=slo_ms,
                max_batch=max_batch,
                max_waiting=max_waiting,
                allow_hosts=allow_host or (),
                allow_origins=allow_origin or (),
                token=token,
                limits=bounds,
                progress=partial(show, "measuring members on this machine, cases"),
            )
        shown = f"[{host}]" if ":" in host else host
        port = taken.getsockname()[1]
        tell(
            f"{len(engine.members)} members on http://{shown}:{port}, answers due in {slo_ms:g} ms; stop with Ctrl-C",
            flush=True,
        )
        run_on(taken, app, bounds)


def _token(file: Path) -> str:
    """What stands in a file, of which nobody should guess anything."""
    with file.open(encoding="utf-8") as opened:
        token = opened.read(4097).strip()
    if not 16 <= len(token) <= 4096 or not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError(f"--token-file {file}: a token is 16 to 4096 letters, digits and signs, in one line")
    return token
