"""The command line `rsmoe`: one file for each command, and what they share in `options`, `terminal`
and `images`.

Nothing heavy is imported before a command runs, so that `rsmoe --help` answers at once. Bad input costs one line on
stderr and the exit code 2, Ctrl-C gives 130; only a bug shows a traceback. Results go to stdout, all else to stderr.
"""

import logging
import os
import signal
import sys
from importlib import import_module
from typing import Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from ..errors_rsmoe import RSMoEError


# Each stands in the file of its name, which is imported when it runs: listing them needs none.
COMMANDS = {
    "caption": "Caption images: the router's prompts, what each expert found, the caption.",
    "ask": "Answer questions about an image in a word or phrase.",
    "encode": "Store the features of images, so that later questions need no images: `rsmoe ask FILE QUESTION`.",
    "demo": "Open a page to try the model on: captions as they are written, what led to them, questions. Ctrl-C "
    "stops it.",
    "assemble": "Download, verify and convert the pretrained modules, add our trained weights, write a checkpoint "
    "folder.",
    "convert": "Write the checkpoint that stage 1 starts from. Downloads nothing; holds one shard of weights at a "
    "time.",
    "quantize": "Write a checkpoint in half precision, or in 8 or 4 bits. Router, experts and Q-Former stay in "
    "float32.",
    "evaluate": "Score captions or answers on a data folder: intervals and baselines beside every score.",
    "card": "Write a checkpoint's model card (use, modules, training, scores, limits, licences) and its STAC item.",
    "bench": "Benchmark speed and memory; verify that all decoding paths give the same text.",
    "serve": "Serve OpenAI's chat completions API; requests share batches.",
    "data": "Data folders from public datasets, or from your own images.",
    "train": "Train on your own images and captions: `rsmoe train DATA --output DIR`. Or step by step.",
    "export": "Export router and experts as PEFT adapters, merged LLMs or a vLLM bundle.",
}
BAD_INPUT, INTERRUPTED = 2, 130
# transformers imports torchao wherever it is installed, and without a GPU that warns of its own missing parts.
_CHATTY = ("torchao", "torch.utils._pytree")


class _Commands(TyperGroup):
    """Loads a command when it is called, and prints errors in one line, where typer would draw a box."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        if ctx.meta.get("lists"):
            return TyperCommand(cmd_name, help=COMMANDS[cmd_name], rich_markup_mode=self.rich_markup_mode)
        found = getattr(import_module(f".{cmd_name}", __package__), cmd_name)
        one = found if isinstance(found, typer.Typer) else typer.Typer(add_completion=False)
        if one is not found:
            one.command()(found)
        command = typer.main.get_command(one)
        command.name = cmd_name
        return command

    def format_help(self, ctx: Any, formatter: Any) -> None:
        ctx.meta["lists"] = True
        super().format_help(ctx, formatter)

    def main(self, *args: Any, **kwargs: Any) -> Any:
        if not kwargs.pop("standalone_mode", True):
            return super().main(*args, **{**kwargs, "standalone_mode": False})
        try:
            result = super().main(*args, **{**kwargs, "standalone_mode": False})
        except RSMoEError as error:
            _print_error(str(error))
            result = BAD_INPUT
        except OSError as error:  # what no check foresaw, such as a name of 300 letters
            if isinstance(error, BrokenPipeError):
                raise
            _print_error(f"{error}: check the names and permissions of the files, and the free space")
            result = BAD_INPUT
        except typer.TyperException as error:  # wrong usage
            context = getattr(error, "ctx", None)
            reason = error.format_message().replace("Value error, ", "").rstrip(".")
            _print_error(f"{reason}. See `{context.command_path if context else 'rsmoe'} --help`.")
            result = error.exit_code
        except typer.Abort:
            result = INTERRUPTED
        if result == INTERRUPTED:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            _print_error("interrupted", label=None)
        sys.exit(result if isinstance(result, int) else 0)


app = typer.Typer(
    cls=_Commands,
    help="RS-MoE: captions of aerial images, and answers to questions about them, by a mixture of experts.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _help_without_command(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def _print_error(message: str, **options: Any) -> None:
    from .terminal import print_error  # with much that the list of commands does not need

    print_error(message, **options)


def _interrupt(*signal_and_frame: Any) -> NoReturn:
    """The first Ctrl-C ends a command in good order, a second one at once; there is one line in both cases."""
    signal.signal(signal.SIGINT, _leave)
    raise KeyboardInterrupt


def _leave(*signal_and_frame: Any) -> NoReturn:
    _print_error("interrupted", label=None)
    sys.stderr.flush()
    os._exit(INTERRUPTED)


def main() -> NoReturn:
    """Entry point of `rsmoe`."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # `nohup` and the like ignore it
        signal.signal(signal.SIGINT, _interrupt)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    app(prog_name="rsmoe")
    sys.exit(0)  # not reached: the group exits by itself


__all__ = ["app", "main"]
