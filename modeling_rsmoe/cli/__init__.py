"""The command line `rsmoe`: one file for each command, and what they share in `shared`.

Nothing heavy is imported before a command runs, so that `rsmoe --help` answers at once. Bad input costs one line on
stderr and the exit code 2, Ctrl-C gives 130; only a bug shows a traceback. Results go to stdout, all else to stderr.
"""

import logging
import sys
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from ..errors_rsmoe import RSMoEError
from .ask import ask
from .assemble import assemble
from .bench import bench
from .caption import caption
from .card import card
from .convert import convert
from .data import data
from .demo import demo
from .encode import encode
from .evaluate import evaluate
from .export import export
from .quantize import quantize
from .serve import serve
from .shared import print_error
from .train import train


BAD_INPUT, INTERRUPTED = 2, 130
# transformers imports torchao wherever it is installed, and without a GPU that warns of its own missing parts.
_CHATTY = ("torchao", "torch.utils._pytree")


class _OneLineErrors(TyperGroup):
    """Prints errors in one line, where typer would draw a box."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        if not kwargs.pop("standalone_mode", True):
            return super().main(*args, **{**kwargs, "standalone_mode": False})
        try:
            result = super().main(*args, **{**kwargs, "standalone_mode": False})
        except RSMoEError as error:
            print_error(str(error))
            result = BAD_INPUT
        except typer.TyperException as error:  # wrong usage
            context = getattr(error, "ctx", None)
            reason = error.format_message().replace("Value error, ", "").rstrip(".")
            print_error(f"{reason}. See `{context.command_path if context else 'rsmoe'} --help`.")
            result = error.exit_code
        except typer.Abort:
            result = INTERRUPTED
        if result == INTERRUPTED:
            print_error("interrupted", label=None)
        sys.exit(result if isinstance(result, int) else 0)


app = typer.Typer(
    cls=_OneLineErrors,
    help="RS-MoE: captions of aerial images, and answers to questions about them, by a mixture of experts.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(caption)
app.command()(ask)
app.command()(encode)
app.command()(demo)
app.command()(assemble)
app.command()(convert)
app.command()(quantize)
app.command()(evaluate)
app.command()(card)
app.command()(bench)
app.command()(serve)
app.add_typer(data, name="data")
app.add_typer(train, name="train")
app.add_typer(export, name="export")


@app.callback(invoke_without_command=True)
def _help_without_command(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main() -> NoReturn:
    """Entry point of `rsmoe`."""
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    app(prog_name="rsmoe")
    sys.exit(0)  # not reached: the group exits by itself


__all__ = ["app", "main"]
