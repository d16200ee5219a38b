"""Targets and tables from results alone, and the file they come from."""

import json
import subprocess
import sys

import pytest

from modeling_rsmoe.bench.names import BASE, FULL, RSMOE
from modeling_rsmoe.bench.results import read_results, write_results
from modeling_rsmoe.bench.tables import footer, markdown, tables, targets
from modeling_rsmoe.bench.targets import TARGETS
from modeling_rsmoe.errors_rsmoe import RSMoEError

from .results import group, made_results, times


def test_targets_are_ratios_of_rounds():
    rows = {row[0]: row[1:] for row in targets(made_results()).rows}
    assert rows["full (router, 3 experts, concat) against the base LM alone, 1 image"] == [
        "at most 2.4 x",
        "2.00 (2.00 to 3.00)",
        "yes",
    ]
    assert rows["against router and experts one after another (b), 1 image"][1:] == ["3.50 (3.00 to 4.00)", "yes"]
    assert rows["against PEFT's `adapter_names` (c), 3 sequences"][1:] == ["1.25 (1.00 to 1.50)", "no"]
    assert rows["training examples per second against TRL's plain loop"][1:] == ["1.80 (1.60 to 2.00)", "no"]
    assert rows["against router and experts one after another (b), 1 image"][0] == "at least 2.5 x"
    assert [name for name, row in rows.items() if row[1] == "not measured"] == [
        "the same, 8 images",
        "the same, 24 sequences",
        "full (router, 3 experts, reranked) against SmolVLM-256M's caption of one tile (h)",
        "the same with `router=template`, 5 to 8 experts",
        "decoding step of the experts' sequences of 1 image against llama.cpp's of one, Q8_0 (f)",
        "cold start up to the first caption, full (router, 3 experts, concat)",
        "peak memory of the same",
    ]
    assert len(rows) == len(TARGETS)


def test_targets_beside_llama_cpp_and_of_a_fresh_process():
    results = made_results()
    lengths = {"1 token": (1.0, 1.0), "24 tokens": (3.3, 5.6)}
    of_who = {RSMOE: 2, "llama.cpp, Q8_0": 1}
    both = {f"{who}, {n}": times(*(x * s for s in of)) for who, x in of_who.items() for n, of in lengths.items()}
    results["sections"]["peers"]["groups"].append(group("llama.cpp", f"{RSMOE}, 1 token", times=both))
    cold = [group("cold: full, 1 image", "whole process", times={"whole process": times(9.5, 8, 8.5)})]
    results["sections"]["cold"] = {"seconds": 1.0, "groups": cold, "facts": {}}
    peaks = {"full, 1 image": 1_250_000_000}
    results["sections"]["memory"] = {"seconds": 1.0, "groups": [], "facts": {"peak_bytes": peaks}}
    rows = {row[0]: row[1:] for row in targets(results).rows}
    step = rows["decoding step of the experts' sequences of 1 image against llama.cpp's of one, Q8_0 (f)"]
    assert step == ["at most 2.5 x", "2.00 (2.00 to 2.00)", "yes"]
    start = rows["cold start up to the first caption, full (router, 3 experts, concat)"]
    assert start == ["at most 9 s", "8.50 (8.00 to 9.50)", "yes"]
    assert rows["peak memory of the same"] == ["at most 1.2 GB", "1.25 (1.25 to 1.25)", "no"]


def test_growth_is_that_of_the_added_experts():
    """From 3 experts (4 s) to 8 (9 s): 5/4 more time for 5/3 more experts."""
    row = next(row for row in targets(made_results()).rows if "5 to 8 experts" in row[0])
    assert row[2:] == ["0.75 (0.75 to 0.75)", "no"]


def test_a_step_is_a_difference_of_two_texts():
    """23 more tokens take 2.3 s, so one takes 0.1 s; its 100 MB are read in 0.05 s at 2 GB a second."""
    table = next(table for table in tables(made_results()) if table.title.startswith("(g) one decoding step"))
    assert table.rows[0] == [BASE, "100", "50.0", "100.0", "2.00 (2.00 to 2.00)"]
    assert table.notes == ["memory is read at, GB/s: sum 2.0 (1.0 to 3.0), product 1.0 (1.0 to 1.0)"]


def test_markdown_has_every_table_and_every_number():
    results = made_results()
    text = markdown(results)
    assert text.startswith("**Targets**\n") and "| full, router, concat | 4.00 | 2.00 to 9.00 | 0.25 |" in text
    assert text.count("**") == 2 * len(tables(results)) and "equal but for 1 ties" in text
    assert text.index("</details>") > text.index("<summary>Equality") > text.index("| at most 2.4 x |")
    assert text.count("<details markdown>") == text.count("</details>") == len(results["sections"]) + 1
    assert all(line in text for line in footer(results)) and "backward | 50 %" in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in lines)


def test_the_processor_s_clock():
    assert "| full, router, concat | 2.00 | 1.00 to 4.50 | 0.50 |" in markdown(made_results(), "cpu")


def test_a_busy_machine_is_reported():
    results = made_results()
    assert "The machine was busy: 50 % of" in footer(results)[-1]
    results["machine"]["threads"] = 2
    assert "busy" not in footer(results)[-1]


def test_results_come_back_from_their_file(tmp_path):
    results, file = made_results(), tmp_path / "folder" / "bench.json"
    write_results(results, file)
    assert read_results(file) == json.loads(json.dumps(results)) and [file] == list(file.parent.iterdir())


@pytest.mark.parametrize(
    "text, said",
    [("{", "cannot be read"), ("[]", "format is None"), ('{"format": "rsmoe-bench-2"}', "lacks checkpoint")],
)
def test_what_is_no_result_is_refused(tmp_path, text, said):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(RSMoEError, match=said):
        read_results(tmp_path / "x.json")
    with pytest.raises(RSMoEError, match="there is no file"):
        read_results(tmp_path / "absent.json")


def test_results_are_read_without_torch():
    """Tables of an earlier run come at once."""
    code = "import sys; import modeling_rsmoe.bench.tables, modeling_rsmoe.bench.plots; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_curve_without_its_base_is_no_target():
    results = made_results()
    results["sections"]["latency"]["groups"][0]["times"] = {FULL: times(1)}
    assert targets(results).rows[0][2] == "not measured"
