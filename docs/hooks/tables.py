"""Reference tables that are made from the code: a page says `<!-- table: NAME -->` where one belongs."""

import dataclasses
import inspect
import logging
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any


sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
PLACE = re.compile(r"^<!-- table: (\w+) -->$", flags=re.M)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill the places; a name that no table has is an error."""
    return PLACE.sub(lambda place: TABLES[place[1]](), markdown)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines) + "\n"


def _cell(text: str) -> str:
    """Markdown of ours, with code and links. `utils.tables.markdown_table` is for anybody's text, and escapes more."""
    return " ".join(text.split()).replace("|", r"\|")


def _code(text: object) -> str:
    return f"`{text}`" if str(text) else ""


# ---- the command line


def command_line() -> str:
    """Every command with its arguments and options, as `--help` tells them."""
    import typer

    from modeling_rsmoe.cli import app

    group = typer.main.get_command(app)
    context = group.make_context("rsmoe", [], resilient_parsing=True)
    return "\n".join(_commands(group, context))


def _commands(group: Any, parent: Any) -> Iterator[str]:
    for name in group.list_commands(parent):
        command = group.get_command(parent, name)
        context = command.make_context(name, [], parent=parent, resilient_parsing=True)
        is_group = hasattr(command, "list_commands")
        # The hidden command of a group is what the group does without a step's name.
        path = context.command_path if not command.hidden else parent.command_path
        if not command.hidden:
            yield f"{'##' if parent.parent is None else '###'} {path}\n"
        yield f"{inspect.cleandoc(command.help or '')}\n"
        if not is_group:
            yield f"```console\n{path} {' '.join(command.collect_usage_pieces(context))}\n```\n"
            yield _table(("argument or option", "meaning", "default"), _parameters(command, context))
        else:
            yield from _commands(command, context)


def _parameters(command: Any, context: Any) -> Iterator[Sequence[str]]:
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is None or "--help" in parameter.opts:
            continue
        name, text = record
        meaning, _, brackets = text.partition("  [")
        told = [part for part in brackets.rstrip("]").split("; ") if part]
        default = next((part.removeprefix("default: ") for part in told if part.startswith("default: ")), "")
        notes = [f"({part})" for part in told if not part.startswith("default: ")]
        # typer puts a default in words into brackets.
        shown = default[1:-1] if default.startswith("(") else _code(default)
        yield _code(name.replace(" <list[str]>", "...")), " ".join([meaning, *notes]), shown


# ---- configurations and settings


def configuration() -> str:
    """The fields of every configuration class."""
    import modeling_rsmoe.configuration_rsmoe as module

    return "\n".join(_configuration(getattr(module, name)) for name in module.__all__)


def _configuration(cls: Any) -> str:
    doc = inspect.cleandoc(cls.__doc__)
    text = _linked(doc.split("\nArgs:")[0].strip())
    head = f"## {cls.__name__} {{ #modeling_rsmoe.{cls.__name__} }}\n\n{text} `model_type`: `{cls.model_type}`.\n"
    if "\nArgs:" not in doc:
        return head
    fields = doc.split("\nArgs:")[1].split("\nExample:")[0]
    found = re.findall(r"^    (\w+) \((.*?)\):(.*(?:\n {8,}.*|\n(?=\n? {8}))*)", fields, flags=re.M)
    rows = ((_code(name), _type(told), _default(cls, name), _linked(text)) for name, told, text in found)
    return f"{head}\n{_table(('field', 'type', 'default', 'meaning'), rows)}"


def _linked(text: str) -> str:
    """Classes as links: to this page, or wherever they are."""
    text = re.sub(r"\[`(\w+Config)`\]", r"[`\1`](#modeling_rsmoe.\1)", text)
    return re.sub(r"\[`(\w+)`\](?!\()", r"[`\1`][modeling_rsmoe.\1]", text)


def _type(told: str) -> str:
    return told.split(", *optional*")[0]


def _default(cls: Any, name: str) -> str:
    sub_config = getattr(cls, "sub_configs_defaults", {}).get(name)
    if sub_config is not None:
        return _code(sub_config.model_type or sub_config.config_class.__name__)
    value = getattr(cls, name)
    if value is None:
        return ""
    return _code(f'"{value}"' if isinstance(value, str) else list(value) if isinstance(value, tuple) else value)


def settings() -> str:
    """The settings of a training: name, defaults of each step, meaning."""
    for name in ("torchao", "torch.utils._pytree"):  # without a GPU torchao warns of its own missing parts
        logging.getLogger(name).setLevel(logging.ERROR)
    from modeling_rsmoe.training.settings import (
        ENCODER_DEFAULTS,
        STAGE2_DEFAULTS,
        EncoderRecipe,
        Recipe,
        TrainArguments,
    )

    def rows(cls: Any, *steps: Mapping[str, Any]) -> Iterator[Sequence[str]]:
        """Of a class's own fields; each of `steps` has what differs from their defaults there."""
        for field in dataclasses.fields(cls):
            if field.name in inspect.get_annotations(cls):
                default = [] if callable(field.default_factory) else field.default
                values = (step.get(field.name, default) for step in steps)
                shown = ("not set" if value is None else _code(value) for value in values)
                yield _code(field.name), *shown, field.metadata["help"]

    of_stages = _table(("setting", "stage 1", "stage 2", "meaning"), rows(Recipe, {}, STAGE2_DEFAULTS))
    of_encoder = _table(("setting", "default", "meaning"), rows(EncoderRecipe, {}))
    of_trainer = _table(("setting", "stages", "encoder", "meaning"), rows(TrainArguments, {}, ENCODER_DEFAULTS))
    return (
        f"## The stages: what learns, and from what\n\n{of_stages}\n"
        f"## The encoder: from what the ViT learns\n\n{of_encoder}\n"
        f"## The trainer, of stages and encoder\n\n{of_trainer}"
    )


# ---- what is written


def report() -> str:
    """The fields of a report, from its typed dictionaries."""
    from modeling_rsmoe.evaluation import report as module

    names = ("Report", "CheckpointEntry", "Result", "ScoreEntry", "Against", "Difference")
    return "\n".join(_typed_dict(getattr(module, name)) for name in names)


def _typed_dict(cls: Any) -> str:
    rows = []
    for name, kind, text in re.findall(r"^    (\w+): (.+?)(?:  # (.*))?$", inspect.getsource(cls), flags=re.M):
        optional = re.fullmatch(r"NotRequired\[(.*)\]", kind)
        rows.append(
            (_code(name), _code(optional[1] if optional else kind), f"{text} (not always)" if optional else text)
        )
    return f"### {cls.__name__}\n\n{inspect.cleandoc(cls.__doc__)}\n\n{_table(('field', 'type', 'meaning'), rows)}"


def _columns(name: str) -> Callable[[], str]:
    def table() -> str:
        from modeling_rsmoe.utils import columns

        rows = ((_code(column), _code(kind), meaning) for column, (kind, meaning) in getattr(columns, name).items())
        return _table(("column", "type", "meaning"), rows)

    return table


TABLES: dict[str, Callable[[], str]] = {
    "command_line": command_line,
    "configuration": configuration,
    "settings": settings,
    "report": report,
    "tile": _columns("TILE"),
    "scene": _columns("SCENE"),
    "change": _columns("CHANGE"),
    "image": _columns("IMAGE"),
    "features": _columns("FEATURES"),
    "collection_tile": _columns("COLLECTION_TILE"),
    "prediction": _columns("PREDICTION"),
}
