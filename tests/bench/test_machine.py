"""Facts of the machine, its memory."""

import subprocess
import sys

import pytest

from modeling_rsmoe.bench.machine import Reading, machine_facts, peak_memory


def test_facts_are_of_this_machine():
    facts = machine_facts("cpu")
    assert facts["threads"] >= 1 and facts["cores"] >= 1 and facts["processor"]
    assert facts["memory_bytes"] > 10**8 and "gpu" not in facts


def test_reading_is_timed_over_all_bytes():
    reading = Reading(size=1 << 22)
    assert reading.size == 1 << 22 and reading.sum() == reading.size / 4 and reading.product() == 4096
    found = reading.bandwidth(3)
    assert {name: len(values) for name, values in found.items()} == {"sum": 3, "product": 3}
    assert all(1e7 < value < 1e13 for values in found.values() for value in values)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_is_of_the_process_itself():
    """Not that of the large process that started it, as getrusage says."""
    code = "from modeling_rsmoe.bench.machine import peak_memory; print(peak_memory())"
    held = bytearray(300 << 20)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0 < int(done.stdout) < len(held) < peak_memory()
