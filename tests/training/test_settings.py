"""Settings are read from one file for both stages; what cannot be is refused in one line."""

from dataclasses import fields
from pathlib import Path

import pytest

from modeling_rsmoe import RSMoEError
from modeling_rsmoe.hub.sources import HUB_CONFIGS
from modeling_rsmoe.training import Recipe, TrainArguments, read_settings
from modeling_rsmoe.training.settings import describe_settings


def write(folder: Path, text: str) -> Path:
    (folder / "training.yaml").write_text(text)
    return folder / "training.yaml"


def test_a_file_for_both_stages(tmp_path):
    file = write(
        tmp_path,
        "stage1: {language_model: full, learning_rate: 3e-4, max_steps: 7}\n"
        "stage2: {experts: [theme], expert_share: 1, qformer_learning_rate: 1e-5}\n",
    )
    recipe, arguments = read_settings(file, "stage1", tmp_path / "out")
    assert recipe == Recipe(language_model="full") and (arguments.learning_rate, arguments.max_steps) == (3e-4, 7)
    assert (
        arguments.output_dir == str(tmp_path / "out") and not arguments.bf16 and not arguments.gradient_checkpointing
    )
    recipe, arguments = read_settings(file, "stage2", tmp_path, ["--max_steps", "3", "--experts", "theme", "object"])
    expected = Recipe.of("stage2", experts=["theme", "object"], expert_share=1, qformer_learning_rate=1e-5)
    assert recipe == expected and recipe.language_model == "frozen" and arguments.max_steps == 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("stage2: {}", "no mapping stage1"),
        ("[1", "no YAML"),
        ("stage1: {lerning_rate: 1}", "stage1 has no setting lerning_rate"),
        ("stage1: {output_dir: x}", "--output"),
        ("stage1: {language_model: half}", "language_model is 'half'; expected one of lora, full, frozen"),
        ("stage1: {lora_r: many}", "wrong setting: argument --lora_r.*invalid int"),
        ("stage1: {lora_r: 0}", "lora_r is 0; expected 1 or more"),
        ("stage1: {caption_share: -1}", "caption_share is -1"),
        ("stage1: {example_weight: 2}", "example_weight is 2; expected a share"),
        ("stage1: {experts: theme}", "experts is 'theme'; expected a list"),
        ("stage1: {alignment_steps: 5, qformer: lora}", "alignment_steps is 5, but the Q-Former is lora"),
        ("stage1: {packing: true}", "packing is True; training needs False"),
        ("stage1: {max_length: 100}", "max_length is 100"),
        ("stage1: {lr_scheduler_type: zigzag}", "settings of stage1 do not fit .*zigzag"),
    ],
)
def test_what_is_refused(tmp_path, text, said):
    with pytest.raises(RSMoEError, match=said):
        read_settings(write(tmp_path, text), "stage1", tmp_path)


def test_no_file(tmp_path):
    with pytest.raises(RSMoEError, match="there is no file"):
        read_settings(tmp_path / "none.yaml", "stage1", tmp_path)
    with pytest.raises(RSMoEError, match="wrong setting.*--max_steps"):
        read_settings(write(tmp_path, "stage1: {}"), "stage1", tmp_path, ["--max_steps", "few"])
    with pytest.raises(RSMoEError, match="--what"):
        read_settings(write(tmp_path, "stage1: {}"), "stage1", tmp_path, ["--what", "1"])


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_every_field_has_a_sentence(stage):
    shown = describe_settings(stage)
    for each in [*fields(Recipe), *(f for f in fields(TrainArguments) if f.name in TrainArguments.__annotations__)]:
        assert f"{each.name} (" in shown and each.metadata["help"].strip().endswith(".")
    assert ("qformer (frozen)" in shown) == (stage == "stage2")


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_shipped_settings(stage, tmp_path):
    for file in HUB_CONFIGS.glob("*/training.yaml"):
        recipe, arguments = read_settings(file, stage, tmp_path)
        assert sum(recipe.shares.values()) == pytest.approx(1) and arguments.learning_rate > 0
