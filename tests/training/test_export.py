"""What was learned, alone: put on the start, it is the finished checkpoint again."""

import json

import pytest
import torch
from safetensors.torch import load_file

from modeling_rsmoe import RSMoEError, RSMoEForConditionalGeneration
from modeling_rsmoe.hub.assemble import merge_trained
from modeling_rsmoe.training import read_settings, train_stage
from modeling_rsmoe.training.export import export_trained


pytestmark = pytest.mark.slow


def test_the_start_and_what_was_learned_are_the_outcome(start, data, features, settings_file, tmp_path):
    torch.set_num_threads(1)
    changes = ["--qformer", "queries", "--standardize_vision", "true", "--alignment_steps", "2", "--max_steps", "2"]
    recipe, arguments = read_settings(settings_file, "stage1", tmp_path, changes)
    train_stage("stage1", recipe, arguments, data, tmp_path / "1", start, features=features)
    recipe, arguments = read_settings(settings_file, "stage2", tmp_path, ["--max_steps", "2"])
    train_stage("stage2", recipe, arguments, data, tmp_path / "2", tmp_path / "1", features=features)
    file = export_trained([tmp_path / "1", tmp_path / "2"], tmp_path / "trained.safetensors")
    model = RSMoEForConditionalGeneration.from_pretrained(start)
    merge_trained(model, file)
    expected = RSMoEForConditionalGeneration.from_pretrained(tmp_path / "2").state_dict()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, expected[name], atol=2e-3, rtol=2e-3)
    began = RSMoEForConditionalGeneration.from_pretrained(start).state_dict()
    names = set(load_file(file))
    assert all(name.startswith("llm_lora.") or name in began for name in names)
    changed = {name for name, value in expected.items() if not torch.equal(value, began[name])}
    assert {name for name in changed if "language_model" not in name and "lm_head" not in name} <= names
    record = json.loads((tmp_path / "trained.json").read_text())
    assert record == json.loads((tmp_path / "2" / "training.json").read_text())
    assert record["finished"] and record["before"]["stage"] == "stage1"
    with pytest.raises(RSMoEError, match="1 is given twice"):
        export_trained([tmp_path / "1", tmp_path / "1"], file)
    with pytest.raises(RSMoEError, match="is no finished training"):
        export_trained([start], file)


def test_a_training_of_what_had_learned_before(start, data, features, settings_file, tmp_path):
    """The base LM's pairs of both stand side by side: put on the first start, they are the second outcome."""
    torch.set_num_threads(1)
    where = start
    for place, scaling in (("first", 8), ("second", 2)):
        changes = ["--max_steps", "2", "--learning_rate", "0.02", "--lora_r", "4", "--lora_alpha", str(4 * scaling)]
        recipe, arguments = read_settings(settings_file, "stage1", tmp_path, changes)
        where = train_stage("stage1", recipe, arguments, data, tmp_path / place, where, features=features)
    earlier = export_trained([tmp_path / "first"], tmp_path / "earlier.safetensors")
    file = export_trained([earlier, tmp_path / "second"], tmp_path / "trained.safetensors")
    model = RSMoEForConditionalGeneration.from_pretrained(start)
    merge_trained(model, file)
    expected = RSMoEForConditionalGeneration.from_pretrained(where).state_dict()
    for name, value in model.state_dict().items():
        if not name.startswith(("model.router", "model.experts")):  # they belong to another base LM now, and are reset
            torch.testing.assert_close(value, expected[name], atol=2e-3, rtol=2e-3)
    pairs = load_file(file)
    assert {value.shape[0] for name, value in pairs.items() if name.endswith("lora_A")} == {8}
    cut = load_file(export_trained([earlier, tmp_path / "second"], tmp_path / "cut.safetensors", rank=3))
    a = next(name for name, value in pairs.items() if name.endswith("lora_A") and value.float().norm() > 0)
    b = f"{a.removesuffix('A')}B"
    assert cut[a].shape[0] == cut[b].shape[1] == 3
    whole = pairs[b].float() @ pairs[a].float()
    lost = float(torch.linalg.svdvals(whole)[3:].norm())  # no matrix of rank 3 is nearer
    assert float((whole - cut[b].float() @ cut[a].float()).norm()) == pytest.approx(lost, rel=0.01)
    with pytest.raises(RSMoEError, match="a LoRA of rank 0 holds nothing"):
        export_trained([earlier], file, rank=0)
    (tmp_path / "cut.json").write_text(json.dumps({"stage": "encoder", "finished": True}))  # names none before it
    chained = export_trained([earlier, tmp_path / "cut.safetensors"], tmp_path / "chained.safetensors")
    record = json.loads(chained.with_suffix(".json").read_text())
    assert record == {
        "stage": "encoder",
        "finished": True,
        "before": json.loads((tmp_path / "earlier.json").read_text()),
    }
    earlier.with_suffix(".json").unlink()
    with pytest.raises(RSMoEError, match="earlier.safetensors is no file of trained weights with its .json"):
        export_trained([earlier], file)
