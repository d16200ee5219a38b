"""`rsmoe serve`: a model behind OpenAI's chat-completions API."""

import os
from typing import Annotated

import typer

from ..inference.checkpoint import load
from ..utils.quiet import quiet_libraries
from . import options, terminal


API_KEY = "RSMOE_API_KEY"


def serve(
    model: options.ModelOption = None,
    dtype: options.DtypeOption = None,
    host: Annotated[str, typer.Option(help="Address to listen at. 0.0.0.0 lets the whole network in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 is any free one.")] = 8000,
    batch_size: Annotated[int, typer.Option(min=1, metavar="N", help="Most images in a batch.")] = 8,
    batch_wait: Annotated[
        int, typer.Option(min=0, metavar="MS", help="Longest wait for more requests before a batch runs (ms).")
    ] = 20,
    queue: Annotated[
        int,
        typer.Option(min=1, metavar="N", help="Most requests that wait or run at a time; one more is answered 429."),
    ] = 128,
    client_share: Annotated[
        float,
        typer.Option(
            min=0, max=1, metavar="PART", help="Part of the queue that one address may have, but this machine's."
        ),
    ] = 0.5,
    timeout: Annotated[
        float, typer.Option(min=0.1, metavar="SECONDS", help="Longest time from a request to its answer; then 503.")
    ] = 120,
    max_body: Annotated[int, typer.Option(min=1, metavar="MIB", help="Largest request; more is answered 413.")] = 16,
    max_pixels: Annotated[
        int, typer.Option(min=64, metavar="N", help="Most pixels of an image; more is answered 413.")
    ] = 4096 * 4096,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, metavar="N", help="Longest text, in tokens; a larger max_tokens means so many.")
    ] = 256,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST", help="Fetch images from this host; may be repeated, * is any.", show_default="none"
        ),
    ] = None,
    server_name: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Host name of the server, as behind a proxy; may be repeated. With one, or at a loopback address, "
            "requests for other names are refused.",
            show_default="none",
        ),
    ] = None,
    cors: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ORIGIN", help="Let pages of this origin ask; may be repeated, * is any.", show_default="none"
        ),
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Log each request.")] = False,
) -> None:
    """Serve OpenAI's chat completions API; requests share batches.

    With $RSMOE_API_KEY set, clients must give that key.
    """
    from ..utils.extras import require

    for module in ("fastapi", "uvicorn", "prometheus_client"):
        require(module, "serve")
    with terminal.Steps() as steps:
        from ..serving.access import Access
        from ..serving.app import Service
        from ..serving.limits import Limits
        from ..serving.server import is_loopback, run, take_address

        limits = Limits(
            body_bytes=max_body * 2**20,
            pixels=max_pixels,
            requests=queue,
            client_share=client_share,
            seconds=timeout,
            new_tokens=max_new_tokens,
            batch_size=batch_size,
            batch_wait=batch_wait / 1000,
            hosts=tuple(allow_host or ()),
        )
        with take_address(host, port) as listening:
            names = tuple(server_name or ()) if server_name or is_loopback(listening) else None
            access = Access(os.environ.get(API_KEY), names, tuple(cors or ()))
            checkpoint = load(model, dtype, progress=steps)
            name = checkpoint.public_name
            service = Service(checkpoint.model, checkpoint.processor, name, limits, access)
            address = f"[{host}]" if ":" in host else host
            steps(f"serving {name} at http://{address}:{listening.getsockname()[1]}/v1")
            steps.clear()
            with quiet_libraries():
                run(service, listening, "info" if verbose else "warning")
