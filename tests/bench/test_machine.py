"""Facts of the machine, its memory."""

from modeling_rsmoe.bench.machine import Reading, machine_facts


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
