"""What the commands print: progress and notes on stderr, results on stdout."""

import json
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from ..utils.tables import count_of as count_of


if TYPE_CHECKING:
    from ..inference import Prediction

MAX_SHOWN_TILES = 12  # of a scene in its panel
_SECONDS_BETWEEN_DETAILS = 30.0


class Steps:
    """What is being done now, on stderr: a spinner or bar in a terminal, a line for each new step elsewhere.

    A `utils.progress.Progress`. Numbers that change ("120 of 672 tiles, 1.30 tiles/s") stand behind the bar; where no
    terminal is, they are printed every half minute.
    """

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._progress: Progress | None = None
        self._message = ""
        self._began: tuple[float, float] = (0.0, 0.0)  # when the step began, and how much was done by then
        self._printed = 0.0  # when a detail was last printed

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.clear()

    def __call__(self, message: str, done: float = 0, total: float | None = None, unit: str = "") -> None:
        now = time.monotonic()
        is_new = message != self._message
        if is_new:
            self._message, self._began, self._printed = message, (now, done), now
        detail = self._detail(now, done, total, unit)
        if not self._console.is_terminal:
            if is_new:
                self._print_line(f"{printable(message)} ...")
            elif detail and now - self._printed >= _SECONDS_BETWEEN_DETAILS:
                self._printed = now
                self._print_line(f"{printable(message)}: {detail} ...")
            return
        if is_new or self._progress is None:
            self._progress = self._start(message, total is not None)
        percent = 100 * done / total if total else 0
        self._progress.update(self._progress.task_ids[0], completed=percent, detail=detail)

    def _detail(self, now: float, done: float, total: float | None, unit: str) -> str:
        if not unit or not total:
            return ""
        seconds, new = now - self._began[0], done - self._began[1]
        rate = f", {new / seconds:.2f} {unit}/s" if new and seconds else ""
        return f"{done:,.0f} of {total:,.0f} {unit}{rate}"

    def _print_line(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _start(self, message: str, has_total: bool) -> Progress:
        self.clear()
        columns: list[Any] = [SpinnerColumn(), TextColumn("{task.description}", markup=False)]
        if has_total:
            columns += [BarColumn(bar_width=30), TextColumn("{task.percentage:.0f}%")]
        columns += [TextColumn("{task.fields[detail]}", markup=False), TimeElapsedColumn()]
        progress = Progress(*columns, console=self._console, transient=True)
        progress.add_task(printable(message), total=100, detail="")
        progress.start()
        return progress

    def print(self, line: Any) -> None:
        """A result, to stdout; text is printed as it is, on one line."""
        self.clear()
        if isinstance(line, str):
            print(line, flush=True)
        else:
            Console().print(line)

    def note(self, note: str) -> None:
        """What the user should know, on a line of stderr."""
        self.clear()
        print(printable(f"rsmoe: note: {note}"), file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Leave the terminal to others until the next step."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def print_error(message: str, label: str | None = "error") -> None:
    """Each line of `message` on stderr, with the program's name before it."""
    for line in message.splitlines():
        text = ": ".join(filter(None, ("rsmoe", label, line.strip())))
        print(printable(text), file=sys.stderr)


def show(image: str, prediction: "Prediction", texts: dict[str, str], model: str, as_json: bool, steps: Steps) -> None:
    """One image's result on stdout: a JSON object on one line, or a panel.

    `texts` are what the command is about, by name, the last one being the outcome: `{"caption": ...}`.
    """
    if as_json:
        steps.print(json.dumps({"image": image, **texts, **prediction.steps(), "model": model}))
        return
    rows: list[tuple[Text, ...]] = []
    for name, text in prediction.expert_texts.items():
        rows.append((Text(name, "cyan"), Text("asked", "dim"), shown(prediction.router_prompts[name], "dim italic")))
        rows.append((Text(), Text("found", "dim"), rated(shown(text), prediction.expert_confidences.get(name))))
    rows.append(())
    if prediction.sentences:  # of a paragraph, each beside its writer
        *names, last = texts
        rows += [(Text(name, "bold"), Text(), shown(texts[name], "bold")) for name in names]
        writers = [Text(sentence["writer"], "cyan") for sentence in prediction.sentences]
        headings = [Text(last, "bold"), *[Text()] * (len(writers) - 1)]
        for heading, writer, sentence in zip(headings, writers, prediction.sentences, strict=True):
            rows.append((heading, writer, rated(shown(sentence["text"], "bold"), sentence.get("confidence"))))
    else:
        *others, (last, text) = texts.items()
        rows += [(Text(name, "bold"), Text(), shown(other, "bold")) for name, other in others]
        rows.append((Text(last, "bold"), Text(), rated(shown(text, "bold"), prediction.confidence)))
    if prediction.confidence is not None:
        rows.append((Text(), Text(), Text("%: how likely it is right", "dim")))
    steps.print(panel(rows, 3, image, model))


def panel(rows: Sequence[tuple[Text, ...]], num_columns: int, title: str, subtitle: str) -> Panel:
    """A frame around a table, of which only the last column is wrapped."""
    table = Table.grid(padding=(0, 2))
    for _ in range(num_columns - 1):
        table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*row)
    name = Text(printable(title))
    return Panel(table, title=name, title_align="left", subtitle=Text(subtitle), subtitle_align="right")


def more_tiles(num_tiles: int) -> list[tuple[Text, Text]]:
    """A row that counts the tiles over `MAX_SHOWN_TILES`; none if all are shown."""
    if num_tiles <= MAX_SHOWN_TILES:
        return []
    rest = count_of(num_tiles - MAX_SHOWN_TILES, "more tile")
    return [(Text("...", "dim"), Text(f"{rest}: --output keeps them all", "dim"))]


def rated(text: Text, confidence: float | None) -> Text:
    """A text with how likely it is right, where that is known."""
    return text if confidence is None else Text.assemble(text, (f"  {100 * confidence:.0f} %", "dim not bold"))


def shown(text: str, style: str = "") -> Text:
    """A text of a user or a model."""
    return Text(printable(text) or "(nothing)", style)


def printable(text: str) -> str:
    """Neither a file's name nor a model's words may steer the terminal; names may also hold bytes that are no text."""
    text = text.encode("utf-8", "replace").decode("utf-8")
    return "".join(
        character if character.isprintable() or character == "\n" else "\N{REPLACEMENT CHARACTER}"
        for character in text
    )
