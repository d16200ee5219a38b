"""Public benchmarks, read from the files in which they are published: all in ``BENCHMARKS``.

``load`` gives a ``datasets.DatasetDict``; ``rsmoe data convert`` writes a data folder (``data.folder``).
docs/how-to/datasets.md says where to get each, how to lay out its files, and what to beware of.
"""

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors_rsmoe import RSMoEError
from ..folder import as_datasets
from .aid_multilabel import AID_MULTILABEL
from .eurosat import EUROSAT
from .files import Benchmark, Task
from .karpathy import RSICD, SYDNEY, UCM
from .nwpu import NWPU
from .rsicap import RSICAP, RSIEVAL
from .rsivqa import RSIVQA, RSIVQA_SCENES
from .rsvqa import RSVQA_HR, RSVQA_LR
from .ucm_multilabel import UCM_MULTILABEL
from .vrsbench import VRSBENCH


if TYPE_CHECKING:
    from datasets import DatasetDict

_CAPTIONING = (RSICD, UCM, SYDNEY, NWPU, RSICAP, RSIEVAL, VRSBENCH)
_QUESTIONS = (RSVQA_LR, RSVQA_HR, RSIVQA, RSIVQA_SCENES)
_LABELS = (EUROSAT, UCM_MULTILABEL, AID_MULTILABEL)  # with questions made of them
BENCHMARKS: dict[str, Benchmark] = {benchmark.key: benchmark for benchmark in _CAPTIONING + _QUESTIONS + _LABELS}


def find(name: str) -> Benchmark:
    """The benchmark of a key such as ``rsvqa-lr``, in any case.

    Raises:
        RSMoEError: there is none; it names those that there are.
    """
    if name.lower() not in BENCHMARKS:
        raise RSMoEError(f'there is no benchmark "{name}"; known: {", ".join(BENCHMARKS)}')
    return BENCHMARKS[name.lower()]


def load(
    name: str, source: str | Path, task: Task | None = None, splits: Collection[str] | None = None
) -> "DatasetDict":
    """A benchmark as Hugging Face datasets, one for each split, straight from its published files.

    Args:
        name: a key of ``BENCHMARKS``.
        source: the folder with the published files.
        task: which records, where a benchmark has captions and questions; else it has only one kind.
        splits: the official splits to read; all of them by default.

    Returns:
        The columns ``image`` (decoded when it is used) and ``dataset``, and ``captions`` (a list) or
        ``question``, ``question_type`` and ``answer``. ``push_to_hub`` and ``folder.write_parquet`` store the images.

    Raises:
        RSMoEError: an unknown name, split or task, a missing file or image, or a file that is not as published.
    """
    benchmark = find(name)
    if task is None and len(benchmark.tasks) > 1:
        raise RSMoEError(f'{benchmark.name} has captions and questions; give task="captioning" or task="vqa"')
    chosen = task or benchmark.tasks[0]
    if chosen not in benchmark.tasks:
        raise RSMoEError(f'{benchmark.name} has no task "{chosen}"; known: {", ".join(benchmark.tasks)}')
    return as_datasets(benchmark.records(source, splits), chosen, benchmark.remedy)


__all__ = ["BENCHMARKS", "Benchmark", "Task", "find", "load"]
