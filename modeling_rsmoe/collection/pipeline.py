"""One run: the items (images, tiles) that have no row yet, in shards, by an engine, into one file."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..utils.progress import Progress, no_progress
from .describers import Describer
from .engines import Engine
from .images import Item
from .store import Store
from .worker import Shard


MAX_SHARD_ITEMS = 64  # what a stopped worker loses at most [our decision]
_MIN_SHARDS = 64  # of a small collection, so that every worker has some and the bar moves


@dataclass(frozen=True)
class CollectionResult:
    """What a run did: rows of the output and those with an error, items described by this run and how many of them a
    second (None if fewer than two shards came after the first), shards begun more than once because their worker
    ended, and the commonest error with the number of its rows."""

    num_rows: int
    num_errors: int
    num_described: int
    rate: float | None
    num_repeated: int
    commonest_error: tuple[str, int] | None = None


def describe_collection(
    describer: Describer,
    items: Sequence[Item],
    output: Path,
    engine: Engine,
    batch_size: int,
    progress: Progress = no_progress,
    overwrite: bool = False,
) -> CollectionResult:
    """Describe a collection, or continue a stopped run.

    In float32 neither engine, workers, batch size nor interruptions change a row.

    Args:
        describer: what is done to each item.
        items: the output has a row for each, in this order.
        output: `NAME.parquet`, or a folder for several such files.
        engine: that runs it.
        batch_size: items that the model sees together.
        progress: told how many items are done.
        overwrite: replace an output that exists, once the new one is whole.

    Raises:
        RSMoEError: as of `Store`; the checkpoint cannot be loaded; the cluster cannot be reached.
        OSError: the disk is full. What was written until then stays, and the next run continues from there.
    """
    message = f"{describer.kind} of {len(items):,} {describer.unit}"
    with Store(output, describer.kind, describer.settings, overwrite) as store:
        total = len({item.key for item in items})
        run = _Run(describer, store, engine, batch_size, lambda done: progress(message, done, total, describer.unit))
        run.describe(store.missing(items), total)
        if again := describer.revisit(items, store):
            run.describe(again, total)
        errors = store.finish(items, describer.summary(items, store), describer.metadata)
        commonest = next(iter(errors.most_common(1)), None)
        rate = _rate(run.ticks)
        return CollectionResult(len(items), errors.total(), run.num_described, rate, run.num_repeated, commonest)


@dataclass
class _Run:
    """The items that this run describes, and how it goes."""

    describer: Describer
    store: Store
    engine: Engine
    batch_size: int
    progress: Callable[[int], None]
    num_described: int = 0
    num_repeated: int = 0
    ticks: list[tuple[float, int]] = field(default_factory=list)

    def describe(self, items: Sequence[Item], total: int) -> None:
        done = total - len(items)
        self.progress(done)
        shards = _shards(items, self.batch_size, self.store.next_session())
        for result in self.engine(self.describer, self.store.folder, shards, self.batch_size) if shards else ():
            self.store.add(result.name)
            self.num_repeated += result.num_attempts > 1
            self.num_described += result.num_rows
            self.ticks.append((time.monotonic(), self.num_described))
            done += result.num_rows
            self.progress(done)


def _shards(items: Sequence[Item], batch_size: int, session: int) -> list[Shard]:
    """Shards of a whole number of batches."""
    num_batches = max(1, min(len(items) // (_MIN_SHARDS * batch_size), MAX_SHARD_ITEMS // batch_size))
    size = num_batches * batch_size
    shards = []
    for number, start in enumerate(range(0, len(items), size)):
        shards.append(Shard(f"shard-{session:03}-{number:07}.parquet", list(items[start : start + size])))
    return shards


def _rate(ticks: Sequence[tuple[float, int]]) -> float | None:
    """Items per second since the first shard was ready: before it, models were loaded. One shard is no rate."""
    if len(ticks) < 3:
        return None
    (first, done_first), (last, done_last) = ticks[0], ticks[-1]
    return (done_last - done_first) / (last - first) if last > first else None
