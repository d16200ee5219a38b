"""`rsmoe ask IMAGE QUESTION`: questions about images or scenes, each answered in a word or phrase.

[our decision] Without a question they are typed, or read from standard input, one a line: the images stay encoded.
"""

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from io import TextIOWrapper
from itertools import chain
from typing import Annotated

import typer

from ..collection.features import holds_features
from ..errors_rsmoe import RSMoEError
from ..prompting_rsmoe import question_instruction
from ..scenes.result import SceneTask
from . import collection, options, scenes, terminal
from .images import Inputs
from .views import Views


def ask(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE [QUESTION]",
            help="An image file or URL; a GeoTIFF scene, or STAC items; features of images that `rsmoe encode` wrote. "
            "Then the question, in quotes: without one, questions are typed, or read from standard input, one a line. "
            "With --question any number of images.",
            show_default=False,
        ),
    ],
    questions: Annotated[
        list[str] | None,
        typer.Option(
            "--question", metavar="QUESTION", help="A question; give it again for each more.", show_default=False
        ),
    ] = None,
    tile: scenes.TileOption = None,
    overlap: scenes.OverlapOption = None,
    bands: scenes.BandsOption = None,
    nodata: scenes.NodataOption = None,
    asset: scenes.AssetOption = None,
    remote: scenes.RemoteOption = False,
    output: scenes.OutputOption = None,
    overwrite: scenes.OverwriteOption = False,
    router: options.RouterOption = None,
    fusion: options.FusionOption = None,
    max_new_tokens: options.MaxNewTokensOption = None,
    num_beams: options.NumBeamsOption = None,
    min_confidence: options.MinConfidenceOption = None,
    batch_size: options.BatchSizeOption = options.BATCH_SIZE,
    model: options.ModelOption = None,
    dtype: options.DtypeOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Answer questions about an image in a word or phrase.

    The experts read the image under the question; the base LM reads what they wrote and answers. Every tile of a large
    GeoTIFF is asked, and the answer says how the tiles' answers were combined. Of features, every image is asked.
    """
    images, asked = _split(arguments, questions or [])
    generation = options.Generation(router, fusion, max_new_tokens, num_beams, min_confidence, batch_size, model)
    scene_options = scenes.SceneOptions(tile, overlap, bands, asset, remote, output, overwrite, nodata=nodata)
    of_features = [image for image in images if holds_features(image)]
    if of_features and len(images) > 1:
        raise RSMoEError(f"{of_features[0]} holds features of images: ask it by itself")
    if of_features and scene_options.is_given:
        raise RSMoEError(
            "--tile, --overlap, --bands, --nodata, --asset and --output are of scenes; answers about features are "
            "printed: leave them out, and add --json for programs"
        )
    if output is not None and len(asked) != 1:
        raise RSMoEError("--output holds the answers to one question: give one, or leave it out and add --json")
    scene_options.check()
    with terminal.Steps() as steps:
        later = () if asked else _read_questions(steps)
        if of_features:
            inputs: collection.Features | Inputs = collection.Features(images[0], generation, dtype, as_json, steps)
        else:
            views, again = Views(None, None, False), len(asked) != 1
            inputs = Inputs(images, generation, dtype, scene_options, views, as_json, steps, again)
        if asked:
            inputs.describe([_task(question) for question in asked])
        else:
            _answer(later, inputs)


def _split(arguments: list[str], questions: list[str]) -> tuple[list[str], list[str]]:
    """Images and questions."""
    if not questions and len(arguments) == 2 and not os.path.exists(arguments[1]):
        arguments, questions = arguments[:1], arguments[1:]
    elif not questions and len(arguments) > 1:
        raise RSMoEError(
            "put the question in quotes; of several images give it by --question: rsmoe ask a.png b.png --question "
            '"Is there a road?"'
        )
    questions = [question.strip() for question in questions]
    if not all(questions):
        raise RSMoEError('the question is empty: ask for example "Is there a road?"')
    return arguments, questions


def _task(question: str) -> SceneTask:
    return SceneTask(question_instruction(question), question)


def _answer(questions: Iterable[str], inputs: collection.Features | Inputs) -> None:
    """One question after the other; one that cannot be asked costs itself, and the exit code 1 at the end."""
    exit_code = 0
    for question in questions:
        try:
            inputs.describe([_task(question)])
        except RSMoEError as error:
            terminal.print_error(str(error))
            exit_code = scenes.LEFT_OUT
        except typer.Exit as left_out:
            exit_code = left_out.exit_code
    raise typer.Exit(exit_code)


def _read_questions(steps: terminal.Steps) -> Iterator[str]:
    """Questions of a terminal, or of standard input, whose first is read at once; empty ones are passed over.

    Raises:
        RSMoEError: standard input holds none.
    """
    if sys.stdin is not None and sys.stdin.isatty():
        return filter(None, map(str.strip, _type_questions(steps)))
    steps("reading questions from standard input")
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    questions = filter(None, map(str.strip, sys.stdin or ()))  # None: it is closed
    first = next(questions, None)
    if first is None:
        raise RSMoEError("there is no question: give one in quotes, or lines of questions on standard input")
    return chain([first], questions)


def _type_questions(steps: terminal.Steps) -> Iterator[str]:
    """What is typed until Ctrl-D, with the history and keys of readline."""
    with suppress(ImportError):  # as on Windows, whose terminal has its own
        import readline  # noqa: F401 - input() uses it once it is imported
    steps.note("type a question; Ctrl-D ends")
    prompt = "question> "
    while True:
        steps.clear()
        if not sys.stdout.isatty():  # input() would put its prompt among the results
            print(prompt, end="", file=sys.stderr, flush=True)
        try:
            yield input(prompt if sys.stdout.isatty() else "")
        except EOFError:
            print(file=sys.stderr)
            return


__all__ = ["ask"]
