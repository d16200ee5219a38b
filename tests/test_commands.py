"""Every `rsmoe ...` line in documents, cards and examples is one that the parsers take; every `>>>` example runs."""

import doctest
import importlib
import re
import shlex
from pathlib import Path

import pytest
import torch
import typer

from modeling_rsmoe.cli import app

from .tiny import tiny_model, tiny_processor


ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [
    *ROOT.glob("*.md"),
    *ROOT.glob("docs/**/*.md"),
    *ROOT.glob("hub_configs/*/*.md"),
    *ROOT.glob("hub_configs/*/*.yaml"),
    *ROOT.glob("examples/**/*.py"),
    *ROOT.glob("examples/**/*.md"),
    ROOT / "Makefile",
]
ENDS = {"|", "||", "&&", ";", "&", ">", "2>", "done", "do"}  # of a command in a shell
# Values that stand for something: shell variables, `...`, words in capitals.
STANDS_FOR = re.compile(r"\$|^\.\.\.$|^[A-Z][A-Z_,]*$")


def commands_of(text: str) -> list[tuple[str, bool]]:
    """Commands, and whether each is a whole line (else it is named in a sentence, arguments left out)."""
    commands: list[tuple[str, bool]] = []
    variables: dict[str, str] = {}
    language = None  # of the block that a line is in
    for line in re.sub(r"\\\n[\s#]*", " ", text).splitlines():
        fence = re.match(r"\s*```(\w*)", line)
        if fence:
            language = None if language is not None else fence[1]
        elif "-m modeling_rsmoe.cli " in line and "..." not in line:  # another program starts it
            commands.append((line.strip("# "), True))
        elif language in ("", "bash", "sh", "console"):
            for name, quoted, plain in re.findall(r"""\b([A-Z][A-Z0-9]*)=(?:"([^"]*)"|(\S+))""", line):
                variables[name] = quoted or plain
            if re.search(r"(^|[\s$/(])rsmoe [a-z]", line):
                expanded = re.sub(r"\$([A-Z][A-Z0-9]*)\b", lambda name: variables.get(name[1], name[0]), line)
                commands.append((expanded, True))
    return commands + [(match, False) for match in re.findall(r"`(rsmoe [^`\n]+)`", text)]


def words_of(command: str) -> list[str]:
    """The words after `rsmoe`, up to where the shell's command ends."""
    lexer = shlex.shlex(command, posix=True, punctuation_chars=";|&<>")
    lexer.whitespace_split = True
    words = list(lexer)
    programs = ("rsmoe", "modeling_rsmoe.cli")
    start = next(index for index, word in enumerate(words) if word.split("/")[-1] in programs) + 1
    end = next((index for index in range(start, len(words)) if words[index] in ENDS), len(words))
    return words[start:end]


def parse(words: list[str], whole: bool) -> None:
    """Raises typer's error for a command that is not one."""
    command, name = typer.main.get_command(app), "rsmoe"
    while hasattr(command, "get_command"):
        if not words or words[0].startswith("-"):
            return
        context = command.make_context(name, list(words), resilient_parsing=True)
        name, found, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        if found is None:
            raise typer.BadParameter(f"no command {words[0]!r}")
        command, words = found, rest
    if whole:
        try:
            command.make_context(name, list(words))
        except typer.Exit:  # --help
            pass
        except typer.TyperException as error:
            is_unknown = "No such option" in str(error)
            if is_unknown or not any(STANDS_FOR.search(word) for word in words):
                raise
        return
    options = {"--help"} | {option for parameter in command.params for option in parameter.opts}
    unknown = [word for word in words if word.startswith("--") and word.split("=")[0] not in options]
    if unknown and not (command.context_settings or {}).get("ignore_unknown_options"):
        raise typer.BadParameter(f"no option {unknown[0]}")


CASES = [
    pytest.param(command, whole, id=f"{path.relative_to(ROOT)}: {command.strip()[:60]}")
    for path in sorted(DOCUMENTS)
    for command, whole in commands_of(path.read_text(encoding="utf-8"))
]


@pytest.mark.parametrize(("command", "whole"), CASES)
def test_command(command, whole):
    parse(words_of(command), whole)


def test_commands_are_found():
    assert len(CASES) > 150
    for wrong in (
        "rsmoe captoin a.png",
        "rsmoe caption --tiles 3 a.png",
        "rsmoe train stage1",
        "rsmoe train a",
        "rsmoe ask",
    ):
        with pytest.raises(typer.TyperException):
            parse(words_of(wrong), True)


MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in sorted((ROOT / "modeling_rsmoe").rglob("*.py"))
    if ">>> " in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name):
    module = importlib.import_module(name)
    image = torch.zeros(3, 40, 50, dtype=torch.uint8)
    names = {**vars(module), "image": image, "model": tiny_model(), "processor": tiny_processor()}
    tests = doctest.DocTestFinder(parser=_Parser(), exclude_empty=True).find(module, globs=names)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    results = [runner.run(test) for test in tests]
    assert sum(result.attempted for result in results) and not sum(result.failed for result in results)


@pytest.mark.parametrize(
    "document", [path for path in DOCUMENTS if ">>> " in path.read_text(encoding="utf-8")], ids=str
)
def test_examples_in_documents(document, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"image": torch.zeros(3, 40, 50, dtype=torch.uint8), "model": tiny_model(), "processor": tiny_processor()}
    test = _Parser().get_doctest(document.read_text(encoding="utf-8"), names, document.name, str(document), 0)
    result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE).run(test)
    assert result.attempted and not result.failed


class _Parser(doctest.DocTestParser):
    """Knows the fences that transformers' docstrings have around examples."""

    def parse(self, string, name="<string>"):
        return super().parse(re.sub(r"^\s*```\w*$", "", string, flags=re.M), name)
