"""Records that travel: through every save, quantised, exported; and what a card says where they did not."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from modeling_rsmoe import RSMoEError, RSMoEForConditionalGeneration, RSMoEProcessor
from modeling_rsmoe.cli import app
from modeling_rsmoe.hub.card import card_text, write_card
from modeling_rsmoe.hub.facts import has_learned, read_facts
from modeling_rsmoe.hub.records import carry_records, set_provenance
from modeling_rsmoe.hub.sources import HUB_CONFIGS

from ..tiny import tiny_checkpoint, tiny_start
from .test_facts import record


CARD_YAML = """
license: MIT
summary: A tiny one.
modules: {router: new}
training:
  machine: a laptop
  data: [{name: Ships, url: "https://ships.example", learned: captions, license: CC BY 4.0}]
"""


@pytest.fixture(scope="module")
def folder(checkpoint, tmp_path_factory) -> Path:
    """A trained checkpoint with all its records and a card."""
    folder = Path(shutil.copytree(checkpoint, tmp_path_factory.mktemp("records") / "mine"))
    (folder / "training.json").write_text(json.dumps(record("stage2", record("stage1"), experts=["all"])))
    (folder / "card.yaml").write_text(CARD_YAML)
    shutil.copyfile(HUB_CONFIGS / "rs-moe-nano" / "sources.yaml", folder / "sources.yaml")
    set_provenance(folder, read_facts(folder).provenance)
    write_card(read_facts(folder), folder)
    return folder


def saved(folder: Path, output: Path, **options) -> Path:
    """As anybody saves a model."""
    RSMoEForConditionalGeneration.from_pretrained(folder).save_pretrained(output, **options)
    RSMoEProcessor.from_pretrained(folder).save_pretrained(output)
    return output


def test_every_save_keeps_licences_origins_data_and_steps(folder, tmp_path):
    facts = read_facts(folder)
    again = saved(saved(folder, tmp_path / "once"), tmp_path / "again", max_shard_size="40KB")
    assert not [again / name for name in ("card.yaml", "sources.yaml", "training.json") if (again / name).exists()]
    found = read_facts(again)
    assert found.provenance == facts.provenance and found.base_models and found.trained
    assert [step.name for step in found.steps] == ["stage 1", "stage 2"] and found.texts.license == "MIT"
    text = card_text(found)
    assert "Not a trained model" not in text and "whether the weights learned after them is not recorded" in text
    assert "| [Ships](https://ships.example) | captions | CC BY 4.0 |" in text and "| stage 2 |" in text
    assert "Apache-2.0" in text and "license: mit" in text


@pytest.mark.parametrize("expert_type", ["lora", "full"])
def test_weights_that_learned_are_never_called_untrained(tmp_path, expert_type):
    """Without any record, by the weights alone, in one file or in shards."""
    changes = {"expert_config": {"expert_type": expert_type}}
    learned = tiny_checkpoint(tmp_path / "learned", **changes)
    start = tiny_start(tmp_path / "start", **{**changes, "router_config": {"expert_type": expert_type}})
    shards = saved(learned, tmp_path / "shards", max_shard_size="40KB", save_original_format=False)
    assert [has_learned(folder) for folder in (learned, shards, start)] == [True, True, False]
    text = card_text(read_facts(shards))
    assert "Router and experts have learned" in text and "is not recorded" in text
    assert "Not a trained model" not in text and "the start of a training" not in text
    text = card_text(read_facts(start))
    assert (
        "Router and experts are exactly the base LM; whether the other modules were trained is not recorded." in text
    )
    set_provenance(start, {"training": []})
    assert "**Not a trained model.**" in card_text(read_facts(start)) and not read_facts(start).trained


def test_what_learned_more_has_its_own_card(folder, tmp_path):
    """Steps are added; what card.yaml says of the weights before is not said of the new ones."""
    new = saved(folder, tmp_path / "new")
    carry_records(folder, new, "new", read_facts(folder).steps[:1])
    found = read_facts(new)
    assert [step.name for step in found.steps] == ["stage 1", "stage 2", "stage 1"]
    text = (new / "README.md").read_text()
    assert "# new" in text and "A tiny one" not in text and "MIT" in text and "Ships" in text
    assert (new / "sources.yaml").is_file() and not (new / "card.yaml").exists()


def run(*arguments: object) -> None:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.stderr


def test_quantize(folder, tmp_path):
    run("quantize", folder, "--dtype", "float16", "--output", tmp_path / "half")
    for name in ("card.yaml", "sources.yaml", "training.json"):
        assert (tmp_path / "half" / name).read_bytes() == (folder / name).read_bytes()
    facts, found = read_facts(folder), read_facts(tmp_path / "half")
    assert found.provenance == facts.provenance and found.texts == facts.texts and found.record == facts.record
    assert "# half\n" in (tmp_path / "half/README.md").read_text()


def test_export(folder, tmp_path):
    run("export", "llm", folder, "--output", tmp_path / "llm")
    for name in ("README.md", "card.yaml", "sources.yaml", "training.json"):
        assert (tmp_path / "llm/origin" / name).read_bytes() == (folder / name).read_bytes()
    config = json.loads((tmp_path / "llm/object/config.json").read_text())
    assert config["provenance"] == json.loads((folder / "config.json").read_text())["provenance"]


@pytest.mark.parametrize("wrong", [3, {"training": 3}, {"training": [{"name": "a"}]}, {"modules": {"router": "x"}}])
def test_wrong_provenance_is_named(checkpoint, tmp_path, wrong):
    folder = Path(shutil.copytree(checkpoint, tmp_path / "mine"))
    set_provenance(folder, wrong)
    with pytest.raises(RSMoEError, match=r"config.json: provenance is not what `rsmoe` writes"):
        read_facts(folder)
