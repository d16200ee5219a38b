"""What runs an image collection: this process, or workers of a Ray cluster. Both run `worker.write_shard`.

With Ray, a shard is a row of a `ray.data` dataset, mapped by a pool of actors, one shard at a time; an actor that ends
is started again, and so is what it had not finished. A worker writes its shard to the store itself, under a name that
the shard has from the start: writing a shard twice writes the same file twice. Through Ray go names, places and
numbers, as Python objects; pixels and texts do not.
"""

import contextlib
import io
import logging
import os
import pickle
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors_rsmoe import RSMoEError
from ..utils.extras import require
from ..utils.files import disk_errors
from .describers import Describer
from .worker import Shard, ShardResult, write_shard


OBJECT_STORE_BYTES = 128 * 2**20  # of a cluster for this run: what goes through it are names
_MAX_TEMPORARY_PATH = 40  # characters of a folder of sockets: a socket's path has at most 107, Ray's share is 60


# Writes the shards of a describer into a folder, in any order, and gives the result of each when it is written; the
# number is that of the items which the model sees together.
Engine = Callable[[Describer, Path, Sequence[Shard], int], Iterator[ShardResult]]


class LocalEngine:
    """One shard after the other, in this process."""

    def __call__(
        self, describer: Describer, folder: Path, shards: Sequence[Shard], batch_size: int
    ) -> Iterator[ShardResult]:
        for shard in shards:
            yield write_shard(describer, folder, shard, batch_size)


@dataclass(frozen=True)
class RayEngine:
    """A pool of Ray actors.

    Args:
        workers: their number; by default one for each GPU of the cluster, else for each CPU.
        address: of a running cluster (`auto`, `HOST:PORT`); by default one is started on this machine and ended with
            the run. The cluster's machines have this package, the images and the output's folder under the same paths.
    """

    workers: int | None = None
    address: str | None = None

    def require(self) -> tuple[Any, Any]:
        """ray and ray.data."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        os.environ.setdefault("RAY_worker_niceness", "0")  # a worker is no less than this process would be
        return require("ray", "ray"), require("ray.data", "ray")

    def __call__(
        self, describer: Describer, folder: Path, shards: Sequence[Shard], batch_size: int
    ) -> Iterator[ShardResult]:
        ray, data = self.require()
        # Ray prints what workers ended to stdout.
        with contextlib.redirect_stdout(io.StringIO()), self._cluster(ray):
            for name in ("ray", "ray.data"):
                logging.getLogger(name).setLevel(logging.ERROR)
            context = data.DataContext.get_current()
            context.enable_progress_bars = context.print_on_execution_start = False
            gpus, cpus = (int(ray.cluster_resources().get(kind, 0)) for kind in ("GPU", "CPU"))
            size = min(self.workers or gpus or cpus, len(shards))
            rows = [{"shard": pickle.dumps(shard)} for shard in shards]  # read by this run's workers alone
            results = data.from_items(rows, override_num_blocks=len(rows)).map_batches(
                _Worker,
                fn_constructor_args=[describer, str(folder), batch_size],
                batch_size=1,
                num_cpus=1,
                num_gpus=1 if gpus else None,
                compute=data.ActorPoolStrategy(size=size, max_tasks_in_flight_per_actor=2),
            )
            for row in results.iter_rows():
                if row["problem"]:
                    raise RSMoEError(row["problem"])
                yield ShardResult(row["name"], int(row["num_rows"]), int(row["num_attempts"]))

    @contextlib.contextmanager
    def _cluster(self, ray: Any) -> Iterator[None]:
        """Connected to the cluster, or to one that lives as long as the `with` block."""
        folder = None if self.address else tempfile.mkdtemp(prefix="rsmoe-", dir=_short_folder())
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if folder:
            options |= {"num_cpus": self.workers or os.cpu_count(), "object_store_memory": OBJECT_STORE_BYTES}
            options |= {"include_dashboard": False, "_temp_dir": folder}
        try:
            try:
                _check_reachable(self.address or "")
                with _silent_stderr():
                    ray.init(self.address or "local", **options)
            except (ConnectionError, ValueError, RuntimeError, OSError) as error:
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                what = f"the Ray cluster {self.address} cannot be reached" if self.address else "Ray cannot be started"
                raise RSMoEError(f"{what} ({reason}): see docs/how-to/scale.md, or leave --engine ray out") from error
            yield
        finally:
            ray.shutdown()
            if folder:
                shutil.rmtree(folder, ignore_errors=True)


class _Worker:
    """An actor. What the user can correct comes back as text: Ray would wrap an error in a traceback."""

    def __init__(self, describer: Describer, folder: str, batch_size: int):
        import torch

        torch.set_num_threads(1)  # Ray gives it one CPU
        self._describer, self._folder, self._batch_size = describer, Path(folder), batch_size

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        shard: Shard = pickle.loads(batch["shard"][0])
        result, problem = ShardResult(shard.name, 0, 0), ""
        try:
            self._describer.open(check=True)
            with disk_errors("a worker cannot write", "Free some space, or let its machine see the folder."):
                result = write_shard(self._describer, self._folder, shard, self._batch_size)
        except RSMoEError as error:
            problem = str(error)
        return {**{field: [value] for field, value in result._asdict().items()}, "problem": [problem]}


def _check_reachable(address: str) -> None:
    """Ray would try a wrong address for many minutes. Raises: OSError."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdecimal():
        socket.create_connection((host, int(port)), timeout=10).close()


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """Without what compiled code writes to it; errors are raised."""
    stderr = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def _short_folder() -> str | None:
    """Where temporary files go, unless its name is too long for the sockets that Ray puts there."""
    folder = tempfile.gettempdir()
    return "/tmp" if len(folder) > _MAX_TEMPORARY_PATH and sys.platform != "win32" else folder
