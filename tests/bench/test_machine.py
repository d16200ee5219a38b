"""Facts of the machine, its memory."""

from modeling_rsmoe.bench.machine import machine_facts, memory_reads, read_rates


def test_facts_are_of_this_machine():
    facts = machine_facts("cpu")
    assert facts["threads"] >= 1 and facts["cores"] >= 1 and facts["processor"]
    assert facts["memory_bytes"] > 10**8 and "gpu" not in facts


def test_reading_is_timed_over_all_bytes():
    size = 1 << 22
    reads = memory_reads("cpu", size)
    assert reads["sum"]() == size / 4 and reads["product"]() == 4096
    rates = read_rates("cpu", 3, size=size)
    assert {name: len(values) for name, values in rates.items()} == {"sum": 3, "product": 3}
    assert all(1e7 < value < 1e13 for values in rates.values() for value in values)
