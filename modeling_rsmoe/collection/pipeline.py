"""One run: the images that have no row yet, in parts, by an engine, into one file."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .describers import Describer
from .engines import Engine
from .items import Item
from .store import Store
from .worker import Part


PART_IMAGES = 64  # of a large archive: what a stopped worker loses at most [our decision]
_PARTS = 64  # wished for of a small one, so that every worker has some and the bar moves

# Told rows that are there, rows in all, and images per second of this run, once that is known.
Progress = Callable[[int, int, float | None], None]


@dataclass(frozen=True)
class Summary:
    """What a run made.

    Attributes:
        rows: of the output; `errors` of them hold an error in place of what was asked for.
        made: images described by this run; earlier ones had their rows already.
        rate: of them, in images per second from the end of the first part; None if there was one part.
        begun_again: parts whose worker ended.
    """

    rows: int
    errors: int
    made: int
    rate: float | None
    begun_again: int


def run(
    describer: Describer,
    items: Sequence[Item],
    output: Path,
    engine: Engine,
    batch_size: int,
    progress: Progress = lambda done, total, rate: None,
    overwrite: bool = False,
) -> Summary:
    """Make an archive, or go on with it.

    In float32 neither engine, workers, batch size nor interruptions change a row.

    Args:
        items: the rows of the output are theirs, in this order.
        output: `NAME.parquet`, or a folder for several such files.
        batch_size: images that the model sees together.
        overwrite: replace an output that exists, once the new one is whole.

    Raises:
        RSMoEError: as of `Store`; the checkpoint cannot be loaded; the cluster cannot be reached. OSError: the disk is
            full. What was made until then stays, and the next run goes on from there.
    """
    with Store(output, describer.kind, describer.settings, overwrite) as store:
        missing = store.missing(items)
        total = len({item.name for item in items})
        done = before = total - len(missing)
        begun_again, clock = 0, _Clock()
        progress(done, total, None)
        if missing:
            parts = _parts(missing, batch_size, store.sitting)
            for made in engine(describer, store.folder, parts, batch_size):
                store.add(made.name)
                begun_again += made.begun > 1
                done += made.rows
                clock.tick(done)
                progress(done, total, clock.rate)
        return Summary(len(items), store.finish(items), done - before, clock.rate, begun_again)


def _parts(items: Sequence[Item], batch_size: int, sitting: int) -> list[Part]:
    """Parts of a whole number of batches."""
    batches = max(1, min(len(items) // (_PARTS * batch_size), PART_IMAGES // batch_size))
    size = batches * batch_size
    starts = range(0, len(items), size)
    return [
        Part(f"part-{sitting:03}-{number:07}.parquet", list(items[start : start + size]))
        for number, start in enumerate(starts)
    ]


class _Clock:
    """Images per second since the first part was ready: before it, models were loaded."""

    def __init__(self) -> None:
        self._first: tuple[float, int] | None = None
        self.rate: float | None = None

    def tick(self, done: int) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = now, done
        elif now > self._first[0]:
            self.rate = (done - self._first[1]) / (now - self._first[0])
