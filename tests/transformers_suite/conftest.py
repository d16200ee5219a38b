"""Holds the skipped common tests against the table of skips, and prints how many there are for each cause."""

from collections import Counter
from pathlib import Path

import pytest

from . import skips, source


HERE = Path(__file__).parent
SUITE = ("test_config.py", "test_model.py", "test_processor.py")
MARKS = ("slow", "order", "accelerate_tests", "torch_compile_test", "all_flash_attn_test", "flash_attn_test")
MARKS += ("flash_attn_3_test", "flash_attn_4_test")

collect_ignore: list[str] = []
try:
    source.fetch()
except source.CommonTestsUnavailable:
    # test_source.py fails with the reason; an error while collecting would keep every other test from running.
    collect_ignore += SUITE


def pytest_configure(config: pytest.Config) -> None:
    for mark in MARKS:
        config.addinivalue_line("markers", f"{mark}: set by transformers' common tests")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo):
    """A skip without a row in the table becomes a failure: nobody has looked at it."""
    report = yield
    if item.path.parent != HERE or item.path.name not in SUITE:
        return report
    if report.skipped and skips.find(item.name) is None:
        said = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        report.outcome = "failed"
        report.longrepr = f"{item.name} was skipped ({said}), but no row of {HERE.name}/skips.py names it: add one."
    # A test counts by the worst of its parts (set-up, subtests, itself).
    outcomes = item.config.stash.setdefault(skips.OUTCOMES, {})
    outcomes[item.nodeid] = max(outcomes.get(item.nodeid, "passed"), report.outcome, key=skips.WORST_LAST.index)
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    outcomes = config.stash.get(skips.OUTCOMES, {})
    if not outcomes:
        return
    of_kinds: Counter[str] = Counter()
    for skip, number in skips.count(outcomes):
        of_kinds[skip.kind] += number
    counts = Counter(outcomes.values())
    terminalreporter.section("transformers' common tests")
    terminalreporter.line(f"{counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped, for:")
    for kind, number in of_kinds.most_common():
        terminalreporter.line(f"{number:4} {kind}")
