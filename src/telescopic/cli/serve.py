"""`telescopic serve`: a pack behind HTTP."""

from pathlib import Path
from typing import Annotated

import typer

from telescopic.cli.shown import Backend, tell


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
    max_body: Annotated[int, typer.Option(min=1024, help="Most bytes of a request.")] = 2**23,
) -> None:
    """Serve a pack over HTTP: POST /predict, and a page to look at on GET /.

    What waits is answered together, by the largest member that is in time; if the smallest is too slow, 503.
    """
    from rich.console import Console

    from telescopic.engine import Engine
    from telescopic.serve import application, listening, run_on

    try:  # before anything is loaded or measured; who comes early waits
        taken = listening(host, port)
    except OSError as error:
        raise OSError(f"cannot listen on {host}, port {port}: {error.strerror}. Name another with --port") from error
    with taken:
        with Console(stderr=True).status("loading ...") as status:
            engine = Engine(pack, threads=threads, backend=backend)
            app = application(
                engine,
                slo_ms=slo_ms,
                max_batch=max_batch,
                max_waiting=max_waiting,
                max_body=max_body,
                progress=lambda done, of: status.update(f"measuring members on this machine, {done} of {of} cases"),
            )
        shown = f"[{host}]" if ":" in host else host
        port = taken.getsockname()[1]
        tell(
            f"{len(engine.members)} members on http://{shown}:{port}, answers due in {slo_ms:g} ms; stop with Ctrl-C",
            flush=True,
        )
        run_on(taken, app)
