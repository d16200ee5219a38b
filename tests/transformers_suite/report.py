"""Runs the common tests and writes a page with their counts and the reason of every skip.

`python -m tests.transformers_suite.report docs/reference/common_tests.md`
"""

import os
import sys
import tempfile
from collections import Counter
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import torch
import transformers

from . import skips
from .generation import GenerationTests


COMMAND = "python -m tests.transformers_suite.report docs/reference/common_tests.md"
MODEL, FULL = "RSMoEModelTest", "RSMoEFullExpertsModelTest"
CONFIG, PROCESSOR = "RSMoE*ConfigTest", "RSMoEProcessorTest"
TITLES = {
    (CONFIG, False): "config classes: `ConfigTester`",
    (MODEL, False): "model with `lora` experts: `ModelTesterMixin`",
    (MODEL, True): "the same: our generation tests",
    (FULL, False): "model with `full` experts: those of `ModelTesterMixin` that depend on the kind of expert",
    (FULL, True): "the same: our generation tests",
    (PROCESSOR, False): "processor: `ProcessorTesterMixin`",
}
NOT_SHIPPED = """\
The source distribution of transformers carries the top level of its `tests` folder only. What the common tests import
from below is provided by `tests/transformers_suite/stand_ins.py`, and is therefore *not* transformers' own:

| part of transformers' tests | here |
|---|---|
| `GenerationTesterMixin` | our tests of the same contract, `tests/transformers_suite/generation.py` |
| `ExportTesterMixin` (torch.export, ONNX) | not run |
| `PipelineTesterMixin`'s tests of each task | our tests of two, `tests/transformers_suite/test_pipeline.py` |
| images behind Hub URLs | an image made on the spot |

(So transformers' `test_generation_tester_mixin_inheritance` shows no more than that ours is inherited.)
"""


class Recorder:
    """Pytest plugin that keeps the outcomes of the session."""

    def __init__(self) -> None:
        self.outcomes: dict[str, str] = {}

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        self.outcomes = session.config.stash.get(skips.OUTCOMES, {})


def belongs(nodeid: str, test_class: str, ours: bool) -> bool:
    """Says whether a test is of `test_class` (a pattern), and of our generation tests (`ours`) or of transformers'."""
    _, found, name = nodeid.split("::")
    return fnmatchcase(found, test_class) and hasattr(GenerationTests, name) == ours


def render(outcomes: dict[str, str]) -> str:
    """Returns the page: counts for each test class, then one line for each row of the table of skips."""
    lines = [
        "# transformers' common tests on our classes",
        "",
        f"transformers {transformers.__version__}, torch {torch.__version__.split('+')[0]}, without an accelerator. "
        f"Made by `{COMMAND}`.",
        "",
        "| tests | passed | failed | skipped |",
        "|---|---:|---:|---:|",
    ]
    for (test_class, ours), title in TITLES.items():
        counts = Counter(outcome for nodeid, outcome in outcomes.items() if belongs(nodeid, test_class, ours))
        lines.append(f"| {title} | {counts['passed']} | {counts['failed']} | {counts['skipped']} |")
    counts = Counter(outcomes.values())
    lines.append(f"| **all** | **{counts['passed']}** | **{counts['failed']}** | **{counts['skipped']}** |")
    lines += ["", NOT_SHIPPED, "## Skipped tests", ""]
    lines += ["Every skip is transformers' own; this project skips none. A skip without a row here fails the run.", ""]
    lines += ["| tests | number | kind | reason |", "|---|---:|---|---|"]
    lines += [f"| `{skip.tests}` | {number} | {skip.kind} | {skip.reason} |" for skip, number in skips.count(outcomes)]
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    """Runs the suite and writes the page, whether or not a test failed. Returns pytest's exit status."""
    if len(arguments) != 1:
        print(f"usage: {COMMAND}", file=sys.stderr)
        return 2
    target = Path(arguments[0])
    recorder = Recorder()
    status = pytest.main([str(Path(__file__).parent), "-q"], plugins=[recorder])
    with tempfile.NamedTemporaryFile("w", dir=target.parent, delete=False) as file:
        file.write(render(recorder.outcomes))
    os.chmod(file.name, 0o644)
    os.replace(file.name, target)
    return int(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
