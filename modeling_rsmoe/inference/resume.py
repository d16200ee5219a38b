"""What a long run has finished so far, in a file that a later run continues.

JSON lines: the run's settings, then one line for each finished piece of work, written batch by batch.
"""

import json
import os
from collections.abc import Callable, Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors_rsmoe import RSMoEError, first_line
from ..utils.files import check_input, parse_json


Line = dict[str, Any]
_MAX_SHOWN = 80  # characters of a setting in an error


class KeyedLog:
    """Lines of finished work, by key.

    Args:
        path: of the file; None keeps the lines in memory only.
        settings: whatever the lines depend on, as JSON.
        key_of: a line's key. It raises KeyError, TypeError or ValueError for what is no line of this kind.

    Attributes:
        lines: by key, in the order in which they were written.

    Raises:
        RSMoEError: the file is of another run (the first setting that differs is named), or holds other things.
    """

    def __init__(self, path: Path | None, settings: Mapping[str, Any], key_of: Callable[[Line], Hashable]):
        self.path = path
        self.lines: dict[Any, Line] = {}
        self._settings: Line = json.loads(json.dumps(settings))
        self._key_of = key_of
        if path is not None and path.exists():
            self._read(path)

    def add(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Keep lines; they are in the file when this returns, or an OSError leaves what was written before."""
        new_lines = [dict(line) for line in lines]
        if self.path is not None:
            head = [] if self.path.exists() else [{"settings": self._settings}]
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in [*head, *new_lines])
        self.lines |= {self._key_of(line): line for line in new_lines}

    def remove(self) -> None:
        """The run is finished, and its results are elsewhere."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def _read(self, path: Path) -> None:
        if path.is_file() and not path.stat().st_size:  # killed before anything was written
            path.unlink()
            return
        check_input(path, "a file of finished work")
        content = path.read_bytes()
        length = content.rfind(b"\n") + 1
        if length < len(content):  # killed while writing
            with path.open("r+b") as file:
                file.truncate(length)
        if not length:  # killed before the first line was written
            path.unlink()
            return
        settings, lines = read_log(path, self._key_of)
        if settings is None:
            raise RSMoEError(f"{path} is no unfinished run of this program; delete it, or write elsewhere")
        self.refuse_other(settings, self._settings)
        self.lines = lines

    def refuse_other(self, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        """Raise RSMoEError for the first setting that is not what it was."""
        before, now = json.loads(json.dumps([before, now]))
        for name in [*now, *before]:
            if now.get(name) != before.get(name):
                difference = _difference(name, before.get(name), now.get(name))
                raise RSMoEError(
                    f"{self.path} is a run with other settings ({difference}); "
                    "give those again to continue it, delete it to start anew, or write elsewhere"
                )


def read_log(path: Path, key_of: Callable[[Line], Hashable]) -> tuple[Line | None, dict[Any, Line]]:
    """The settings (None in a file without) and lines of a file; `key_of` as of `KeyedLog`."""
    check_input(path, "a file of finished work")
    settings: Line | None = None
    lines: dict[Any, Line] = {}
    for number, raw in enumerate(path.read_bytes().splitlines(), start=1):
        if not raw.strip():
            continue
        try:
            line = parse_json(raw)
            if number == 1 and [*line] == ["settings"] and isinstance(line["settings"], dict):
                settings = line["settings"]
            else:
                lines[key_of(line)] = line
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RSMoEError(f"{path}:{number} is no line of this kind of file ({first_line(error)})") from error
    return settings, lines


def _difference(name: str, before: Any, now: Any) -> str:
    """A setting with both its values; of long ones the part that differs."""
    texts = [json.dumps(value, ensure_ascii=False) for value in (before, now)]
    if max(map(len, texts)) > _MAX_SHOWN:
        if isinstance(before, dict) and isinstance(now, dict):
            key = next(key for key in {**before, **now} if before.get(key) != now.get(key))
            return _difference(f"{name}.{key}", before.get(key), now.get(key))
        start = max(0, len(os.path.commonprefix(texts)) - _MAX_SHOWN // 4)
        texts = [_excerpt(text, start) for text in texts]
    return f"{name}: {texts[0]}, now {texts[1]}"


def _excerpt(text: str, start: int) -> str:
    end = start + _MAX_SHOWN
    return "..." * (start > 0) + text[start:end] + "..." * (end < len(text))
