"""The time that `rsmoe train estimate` reckons: operations counted, held against a count by hand."""

import re

import pytest
from typer.testing import CliRunner

from modeling_rsmoe.cli import app
from modeling_rsmoe.training import Recipe, memory

from ..tiny import TEXT, tiny_config


def flops(recipe: Recipe, examples: int = 4) -> tuple[int, int]:
    batch = memory.Batch(examples, tokens=64, labels=32)
    kept, recomputed = memory.step_costs(tiny_config(), recipe, batch, bf16=False)
    return kept.flops, recomputed.flops


def test_operations_are_those_counted_by_hand():
    """What a base LM that learns has to compute more than a frozen one: the gradients of its matrices."""
    width, inner, layers = TEXT["hidden_size"], TEXT["intermediate_size"], TEXT["num_hidden_layers"]
    keys = width // TEXT["num_attention_heads"] * TEXT["num_key_value_heads"]
    weights = layers * (2 * width * width + 2 * width * keys + 3 * width * inner)
    tokens, labels = 4 * 64, 4 * 32
    learned = 2 * weights * tokens + 2 * width * TEXT["vocab_size"] * labels
    frozen, full = (flops(Recipe(language_model=how)) for how in ("frozen", "full"))
    assert full[0] - frozen[0] == learned
    # Computed again: the layers' own products, and attention of all tokens to all tokens.
    again = 2 * weights * tokens + layers * 2 * 4 * 64 * 64 * 2 * width
    assert full[1] - full[0] == pytest.approx(again, rel=0.35) and full[1] - full[0] > again  # the Q-Former's beside
    assert flops(Recipe(), examples=8)[0] == 2 * flops(Recipe())[0]


def test_seconds_are_reckoned_of_a_share_of_the_peak():
    assert memory.reckoned_seconds(312 * 10**12) == pytest.approx(1 / 0.3)
    assert memory.reckoned_seconds(10**12, peak_tflops=1) == pytest.approx(1 / 0.3)


def test_command(checkpoint, settings_file):
    arguments = ["train", "estimate", str(checkpoint), "--config", str(settings_file), "--processes", "1"]
    result = CliRunner().invoke(app, [*arguments, "--tflops", "1e-6", "--markdown"])
    assert result.exit_code == 0, result.output
    assert "reckoned: 30% of 1e-06 TFLOP a second" in result.stdout
    rows = re.findall(r"^\| (stage\d) \| (\d+) \| \S+ / \S+ \| (\S+) / (\S+) \| (\S+) / \S+ \|$", result.stdout, re.M)
    assert [row[:2] for row in rows] == [("stage1", "4"), ("stage2", "4")]
    for _, _, kept, again, hours in rows:
        assert float(again) > float(kept) > 1 and float(hours) == pytest.approx(4 * float(kept) / 3600, abs=0.006)
