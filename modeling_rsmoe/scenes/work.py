"""What a run over a scene has done so far, in a file beside its output that a later run goes on with.

`scene.geojson.partial` holds JSON lines: the run's settings, then one line for each tile, written batch by batch. It is
removed when the output is there.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors_rsmoe import RSMoEError


SUFFIX = ".partial"
Key = tuple[int, int]  # number of the scene, number of the tile in its grid


class WorkFile:
    """Lines of finished tiles, by scene and tile.

    Args:
        output: the file that the run will write; None keeps the lines in memory only.
        settings: whatever the tiles' lines depend on, as JSON.

    Raises:
        RSMoEError: the file there is of another run; the first setting that differs is named.
    """

    def __init__(self, output: Path | None, settings: Mapping[str, Any]):
        self.path = None if output is None else output.with_name(output.name + SUFFIX)
        self.lines: dict[Key, dict[str, Any]] = {}
        self._settings: dict[str, Any] = json.loads(json.dumps(settings))
        if self.path is not None and self.path.exists():
            self._read(self.path)

    def add(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Keep these lines, each with `scene` and `tile`; they are on the disk when this returns.

        Raises:
            OSError: the disk is full, for example. What was written before stays.
        """
        new = [dict(line) for line in lines]
        if self.path is not None:
            head = [] if self.path.exists() else [{"settings": self._settings}]
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in [*head, *new])
        self.lines |= {(line["scene"], line["tile"]): line for line in new}

    def remove(self) -> None:
        """The run is finished."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def _read(self, path: Path) -> None:
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):  # killed while writing
            with path.open("r+b") as file:
                file.truncate(whole)
        head, *lines = content[:whole].splitlines() or [b""]
        if not whole:  # killed before the first line was written
            path.unlink()
            return
        try:
            settings = json.loads(head)["settings"]
            for line in map(json.loads, lines):
                self.lines[int(line["scene"]), int(line["tile"])] = line
        except (ValueError, KeyError, TypeError) as error:
            raise RSMoEError(f"{path} is no unfinished run of this program; delete it, or write elsewhere") from error
        for name in [*self._settings, *settings]:
            here, there = self._settings.get(name), settings.get(name)
            if here != there:
                raise RSMoEError(
                    f"{path} is a run with other settings ({name}: {_short(there)}, now {_short(here)}); give those again "
                    "to go on with it, delete it to start anew, or write elsewhere"
                )


def _short(value: Any, length: int = 80) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= length else f"{text[: length - 3]}..."
