"""One run: the images that have no row yet, in shards, by an engine, into one file."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..utils.progress import Progress, no_progress
from .describers import Describer
from .engines import Engine
from .images import CollectionImage
from .store import Store
from .worker import Shard


MAX_SHARD_IMAGES = 64  # what a stopped worker loses at most [our decision]
_MIN_SHARDS = 64  # of a small collection, so that every worker has some and the bar moves


@dataclass(frozen=True)
class CollectionResult:
    """What a run did: rows of the output and those with an error, images described by this run and how many of them a
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
    images: Sequence[CollectionImage],
    output: Path,
    engine: Engine,
    batch_size: int,
    progress: Progress = no_progress,
    overwrite: bool = False,
) -> CollectionResult:
    """Describe a collection, or continue a stopped run.

    In float32 neither engine, workers, batch size nor interruptions change a row.

    Args:
        describer: what is done to each image.
        images: the output has a row for each, in this order.
        output: `NAME.parquet`, or a folder for several such files.
        engine: that runs it.
        batch_size: images that the model sees together.
        progress: told how many images are done.
        overwrite: replace an output that exists, once the new one is whole.

    Raises:
        RSMoEError: as of `Store`; the checkpoint cannot be loaded; the cluster cannot be reached.
        OSError: the disk is full. What was written until then stays, and the next run continues from there.
    """
    message = f"{describer.kind} of {len(images):,} images"
    with Store(output, describer.kind, describer.settings, overwrite) as store:
        missing = store.missing(images)
        total = len({image.name for image in images})
        done = done_before = total - len(missing)
        num_repeated, ticks = 0, list[tuple[float, int]]()
        progress(message, done, total, "images")
        if missing:
            shards = _shards(missing, batch_size, store.next_session())
            for result in engine(describer, store.folder, shards, batch_size):
                store.add(result.name)
                num_repeated += result.num_attempts > 1
                done += result.num_rows
                ticks.append((time.monotonic(), done))
                progress(message, done, total, "images")
        errors = store.finish(images)
        described = done - done_before
        commonest = next(iter(errors.most_common(1)), None)
        return CollectionResult(len(images), errors.total(), described, _rate(ticks), num_repeated, commonest)


def _shards(images: Sequence[CollectionImage], batch_size: int, session: int) -> list[Shard]:
    """Shards of a whole number of batches."""
    num_batches = max(1, min(len(images) // (_MIN_SHARDS * batch_size), MAX_SHARD_IMAGES // batch_size))
    size = num_batches * batch_size
    shards = []
    for number, start in enumerate(range(0, len(images), size)):
        shards.append(Shard(f"shard-{session:03}-{number:07}.parquet", list(images[start : start + size])))
    return shards


def _rate(ticks: Sequence[tuple[float, int]]) -> float | None:
    """Images per second since the first shard was ready: before it, models were loaded. One shard is no rate."""
    if len(ticks) < 3:
        return None
    (first, done_first), (last, done_last) = ticks[0], ticks[-1]
    return (done_last - done_first) / (last - first) if last > first else None
