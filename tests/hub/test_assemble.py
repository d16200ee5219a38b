"""Assembling: a tiny checkpoint from tiny parts, the merge of trained weights, and nothing half-written."""

import errno
import json
import logging
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from modeling_rsmoe import RSMoEError, RSMoEForConditionalGeneration
from modeling_rsmoe.hub import assemble as assembling
from modeling_rsmoe.hub.assemble import assemble, build, merge_trained, round_to_half
from modeling_rsmoe.hub.pretrained import qformer_from_bert
from modeling_rsmoe.reranker_rsmoe import RSMoEReranker
from modeling_rsmoe.utils.provenance import folder_sha256

from .tiny_sources import NAME, TOKENS, change_json


SCALING = 1.5
LORA_TARGETS = {"layers.0.self_attn.q_proj": (32, 32), "layers.1.mlp.down_proj": (48, 32)}  # (in, out)


@pytest.fixture(scope="module")
def start(tiny_sources, tmp_path_factory) -> Path:
    """The start of a training, on disk."""
    return run(tiny_sources, tiny_sources.wheels, tmp_path_factory.mktemp("start") / "checkpoint", trained=False)


@pytest.fixture
def configs(tiny_sources, tmp_path) -> Path:
    """A hub_configs folder of one's own to damage."""
    return Path(shutil.copytree(tiny_sources.hub_configs, tmp_path / "hub_configs"))


def run(tiny_sources, cache, output, **kwargs):
    kwargs.setdefault("hub_configs", tiny_sources.hub_configs)
    return assemble(NAME, output, cache, **kwargs)


def trained_tensors(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What a training changes and no source gives, and two low-rank pairs for the base LM, in half precision."""
    torch.manual_seed(7)
    trained = ("projection", "query_tokens", "crossattention", "router", "experts", "vision_model.layernorm")
    tensors = {
        name: torch.randn_like(value).half() for name, value in state.items() if any(word in name for word in trained)
    }
    for target, (into, out) in LORA_TARGETS.items():
        tensors[f"llm_lora.{target}.lora_A"] = torch.randn(2, into).half()
        tensors[f"llm_lora.{target}.lora_B"] = torch.randn(out, 2).half()
    return tensors


def write_trained(path: Path, tensors: dict[str, torch.Tensor], **metadata: str) -> Path:
    save_file(tensors, path, metadata=metadata or {"language_model_lora_scaling": str(SCALING)})
    return path


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


class TestFolder:
    def test_it_loads_by_the_auto_classes_with_the_parts_in_place(self, tiny_sources, start):
        model, info = AutoModelForImageTextToText.from_pretrained(start, output_loading_info=True)
        assert not info["missing_keys"] | info["unexpected_keys"] | info["mismatched_keys"]
        assert model.dtype == torch.float32
        table = model.model.language_model.embed_tokens.weight
        assert torch.equal(table[: len(TOKENS)], tiny_sources.llm.embed_tokens.weight)
        assert len(torch.unique(table[len(TOKENS) :], dim=0)) == 6
        for name, weight in tiny_sources.llm.layers.state_dict().items():
            assert torch.equal(model.model.language_model.layers.state_dict()[name], weight), name
        vision = model.model.encoder.vision_model.state_dict()
        assert torch.equal(
            vision["encoder.layer.1.attention.q_proj.weight"],
            tiny_sources.vit.encoder.layer[1].attention.q_proj.weight,
        )
        qformer = model.model.encoder.qformer.state_dict()
        for name, weight in qformer_from_bert(tiny_sources.hub / "tiny" / "qformer" / "model.safetensors").items():
            assert torch.equal(qformer[name], weight), name

    def test_it_generates(self, start):
        model, processor = RSMoEForConditionalGeneration.from_pretrained(start), AutoProcessor.from_pretrained(start)
        inputs = processor(images=torch.zeros(3, 28, 28, dtype=torch.uint8), text="describe?", return_tensors="pt")
        outputs = model.generate(**inputs, return_dict_in_generate=True)
        result = processor.post_process_generation(outputs)[0]
        assert list(result["expert_texts"]) == ["theme", "object", "relation"]
        assert model.generation_config.max_new_tokens == 4

    def test_it_is_complete(self, start):
        names = {path.name for path in start.iterdir()}
        assert {
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "processor_config.json",
            "chat_template.jinja",
        } <= names
        assert {"tokenizer.json", "tokenizer_config.json", "qformer_tokenizer", "sources.yaml", "README.md"} <= names
        assert {"configuration_rsmoe.py", "modeling_rsmoe.py", "processing_rsmoe.py"} <= names  # the remote code
        assert json.loads((start / "qformer_tokenizer" / "config.json").read_text()) == {"model_type": "bert"}
        # The names in the file are the model's own, so that a plain load fills every weight.
        model = RSMoEForConditionalGeneration.from_pretrained(start)
        assert load_file(start / "model.safetensors").keys() == model.state_dict().keys() - {"lm_head.weight"}

    def test_the_start_of_a_training_is_reproducible(self, tiny_sources, start, tmp_path):
        torch.manual_seed(1234)
        before = torch.get_rng_state()
        again = run(tiny_sources, tiny_sources.wheels, tmp_path / "again", trained=False)
        assert torch.equal(before, torch.get_rng_state())  # the caller's random numbers are not ours
        first, second = load_file(start / "model.safetensors"), load_file(again / "model.safetensors")
        assert all(torch.equal(first[name], second[name]) for name in first)
        assert all(not first[name].any() for name in first if name.endswith("lora_B"))

    def test_the_hub_gives_the_same_as_the_wheels(self, tiny_sources, start, tmp_path, monkeypatch):
        monkeypatch.setattr(
            huggingface_hub, "hf_hub_download", lambda repo_id, name, **kwargs: str(tiny_sources.hub / repo_id / name)
        )
        other = run(tiny_sources, tmp_path / "no cache", tmp_path / "hub", trained=False, source="hub")
        first, second = load_file(start / "model.safetensors"), load_file(other / "model.safetensors")
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)
        one, two = (AutoProcessor.from_pretrained(folder) for folder in (start, other))
        text = "describe this: <image> theta 42"
        assert one.tokenizer(text)["input_ids"] == two.tokenizer(text)["input_ids"]
        assert one.qformer_tokenizer(text)["input_ids"] == two.qformer_tokenizer(text)["input_ids"]
        assert not (tmp_path / "no cache").exists()

    def test_progress_tells_each_step(self, tiny_sources, tmp_path):
        told = []
        run(
            tiny_sources,
            tiny_sources.wheels,
            tmp_path / "x",
            trained=False,
            progress=lambda message, *step: told.append(message),
        )
        assert told[0] == f"building {NAME}"
        assert [message for message in told if message.startswith("converting")] == [
            "converting language_model",
            "converting vision_model",
            "converting qformer",
        ]
        assert told[-1] == f"writing {tmp_path / 'x'}"


class TestTrainedWeights:
    @pytest.fixture
    def state(self, start):
        return RSMoEForConditionalGeneration.from_pretrained(start).state_dict()

    def test_they_replace_and_merge(self, tiny_sources, configs, state, tmp_path):
        tensors = trained_tensors(state)
        write_trained(configs / NAME / "trained.safetensors", tensors)
        (configs / NAME / "trained.json").write_text('{"stage": "stage2"}')
        folder = assemble(NAME, tmp_path / "full", tiny_sources.wheels, hub_configs=configs)
        assert folder.joinpath("training.json").read_text() == '{"stage": "stage2"}'
        result = RSMoEForConditionalGeneration.from_pretrained(folder).state_dict()
        assert folder.joinpath("sources.yaml").is_file()
        for name, before in state.items():
            target = name.removeprefix("model.language_model.").removesuffix(".weight")
            if name in tensors:
                expected = tensors[name].float()
            elif target in LORA_TARGETS:
                a, b = (tensors[f"llm_lora.{target}.lora_{side}"].float() for side in "AB")
                expected = before + SCALING * (b @ a)
                assert (expected - before).abs().max() > 0.1
            else:
                expected = before
            if expected.ndim == 2 and name.startswith(("model.language_model.", "lm_head.")):
                assert torch.equal(result[name], result[name].half().float()), name
                expected = expected.half().float()
            torch.testing.assert_close(result[name], expected, rtol=0, atol=1e-6, msg=name)

    @pytest.mark.slow
    def test_what_describes_them_comes_along(self, tiny_sources, configs, state, tmp_path):
        """Ours with its scores; of other weights, or of none, nothing is said that is true of ours only."""
        own = {"README.md": "our card", "card.yaml": "{training: {machine: m, data: []}, limits: [ours]}"}
        own |= {"training.yaml": "{}", "stac_item.json": "{}", "picture.png": "pixels"}
        for name, text in own.items():
            (configs / NAME / name).write_text(text)
        path = write_trained(configs / NAME / "trained.safetensors", trained_tensors(state))
        folder = assemble(NAME, tmp_path / "ours", tiny_sources.wheels, hub_configs=configs)
        assert {name: (folder / name).read_text() for name in own} == own
        hashed = folder_sha256(folder)
        (folder / "stac_item.json").unlink()
        assert folder_sha256(folder) == hashed  # what describes a checkpoint is no part of it
        for trained, words in ((False, "**Not a trained model.**"), (path, "Not evaluated")):
            folder = assemble(NAME, tmp_path / words, tiny_sources.wheels, trained=trained, hub_configs=configs)
            text = (folder / "README.md").read_text()
            assert words in text and "ours" not in text and ModelCard(text).data.base_model[0] == "tiny/language_model"
            assert not (folder / "stac_item.json").exists() and not (folder / "card.yaml").exists()

    @pytest.mark.slow
    def test_there_is_a_reranker_where_they_hold_one(self, tiny_sources, configs, state, tmp_path):
        """Of a configuration that has one: the start of a training and older weights are without."""
        change_json(configs / NAME / "config.json", reranker_rank=4, reranker_buckets=16)
        tensors = trained_tensors(state)
        path = write_trained(tmp_path / "without.safetensors", tensors)
        for trained in (False, path):
            folder = assemble(
                NAME, tmp_path / f"{trained is path}", tiny_sources.wheels, trained=trained, hub_configs=configs
            )
            assert RSMoEForConditionalGeneration.from_pretrained(folder).model.reranker is None
            assert "reranker" not in (folder / "README.md").read_text()
        own = RSMoEReranker(state["model.encoder.vision_model.layernorm.weight"].numel(), 4, 16)
        tensors |= {
            f"model.reranker.{name}": torch.randn_like(value).half() for name, value in own.state_dict().items()
        }
        path = write_trained(tmp_path / "with.safetensors", tensors)
        folder = assemble(NAME, tmp_path / "with", tiny_sources.wheels, trained=path, hub_configs=configs)
        result = RSMoEForConditionalGeneration.from_pretrained(folder).model.reranker.state_dict()
        assert all(torch.equal(value, tensors[f"model.reranker.{name}"].float()) for name, value in result.items())
        assert "**reranker**" in (folder / "README.md").read_text()

    def test_a_file_given_by_path(self, tiny_sources, state, tmp_path):
        tensors = {name: value for name, value in trained_tensors(state).items() if "llm_lora" not in name}
        path = write_trained(tmp_path / "other.safetensors", tensors, note="no low-rank pairs, so no scaling")
        model, _ = build(NAME, tiny_sources.wheels, trained=path, hub_configs=tiny_sources.hub_configs)
        assert torch.equal(model.model.encoder.projection.bias, tensors["model.encoder.projection.bias"].float())

    def test_experts_may_be_left_at_the_base_lm(self, tiny_sources, state, tmp_path):
        tensors = {k: v for k, v in trained_tensors(state).items() if "experts" not in k and "router" not in k}
        path = write_trained(tmp_path / "stage1.safetensors", tensors)
        model, _ = build(NAME, tiny_sources.wheels, trained=path, hub_configs=tiny_sources.hub_configs)
        assert not any(value.any() for name, value in model.state_dict().items() if name.endswith("lora_B"))

    def test_full_experts_start_as_the_merged_block(self, tiny_sources, configs, state, tmp_path):
        change_json(configs / NAME / "config.json", expert_config__expert_type="full")
        tensors = {k: v for k, v in trained_tensors(state).items() if "experts" not in k}
        path = write_trained(tmp_path / "stage1.safetensors", tensors)
        with pytest.raises(RSMoEError, match=r"lacks \d+ weights.*model\.experts\.theme"):
            build(NAME, tiny_sources.wheels, trained=path, hub_configs=configs)  # full experts are no low-rank pairs
        model, _ = build(NAME, tiny_sources.wheels, trained=False, hub_configs=configs)
        merge_trained(model, path)
        merged = model.model.language_model.layers[0].self_attn.q_proj.weight
        assert not torch.equal(merged, state["model.language_model.layers.0.self_attn.q_proj.weight"])
        assert torch.equal(model.model.experts["theme"].layers[0].self_attn.q_proj.weight, merged)

    def test_what_half_precision_cannot_hold_is_not_rounded(self):
        large, small = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
        torch.nn.init.constant_(large.weight, 1e5 + 1)
        torch.nn.init.constant_(small.weight, 1 + 2**-12)
        round_to_half(torch.nn.Sequential(large, small))
        assert bool((large.weight == 1e5 + 1).all()) and bool((small.weight == 1).all())

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (
                {"model.encoder.projektion.bias": torch.zeros(32)},
                "the model has no weight 'model.encoder.projektion.bias'",
            ),
            (
                {"model.encoder.projection.bias": torch.zeros(31)},
                r"projection\.bias has shape \[31\]; this model needs \[32\]",
            ),
            ({"model.encoder.projection.bias": torch.full((32,), float("inf"))}, "projection.bias is not finite"),
            (
                {"llm_lora.layers.0.self_attn.q_proj.lora_A": torch.full((2, 32), float("nan"))},
                "q_proj.lora_A is not finite",
            ),
            ({"llm_lora.layers.9.self_attn.q_proj.lora_A": torch.zeros(2, 32)}, r"layers\.9.*no such layer"),
            ({"llm_lora.layers.0.mlp.up_proj.lora_A": torch.zeros(2, 32)}, "only one of lora_A and lora_B"),
            ({"llm_lora.layers.0.self_attn.q_proj.lora_A": torch.zeros(2, 31)}, r"do not fit a weight of \[32, 32\]"),
            ({"llm_lora.layers.0.self_attn.q_proj.lora_A": torch.zeros(3, 32)}, r"do not fit a weight of \[32, 32\]"),
            ({"model.encoder.query_tokens.weight": None}, "lacks 1 weights.*query_tokens.weight"),
        ],
    )
    def test_what_does_not_fit_is_named(self, tiny_sources, state, tmp_path, change, message):
        tensors = {**trained_tensors(state), **change}
        path = write_trained(
            tmp_path / "t.safetensors", {name: value for name, value in tensors.items() if value is not None}
        )
        with pytest.raises(RSMoEError, match=message):
            run(tiny_sources, tiny_sources.wheels, tmp_path / "out", trained=path)
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("metadata", [{"alpha": "16"}, {"language_model_lora_scaling": "two"}])
    def test_pairs_without_a_scaling_are_refused(self, tiny_sources, state, tmp_path, metadata):
        path = write_trained(tmp_path / "t.safetensors", trained_tensors(state), **metadata)
        with pytest.raises(RSMoEError, match="language_model_lora_scaling"):
            build(NAME, tiny_sources.wheels, trained=path, hub_configs=tiny_sources.hub_configs)

    def test_a_missing_file_is_named_before_anything_is_downloaded(self, tiny_sources, tmp_path):
        with pytest.raises(RSMoEError, match=r"trained\.safetensors do not exist.*trained=False"):
            run(tiny_sources, tmp_path / "cache", tmp_path / "out")
        assert not (tmp_path / "cache").exists()

    def test_a_truncated_file_is_refused(self, tiny_sources, state, tmp_path):
        path = write_trained(tmp_path / "t.safetensors", trained_tensors(state))
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(RSMoEError, match="cannot be read as safetensors"):
            run(tiny_sources, tiny_sources.wheels, tmp_path / "out", trained=path)

    def test_trained_weights_on_the_hubs_parts_are_warned_about(
        self, tiny_sources, state, tmp_path, monkeypatch, caplog
    ):
        monkeypatch.setattr(
            huggingface_hub, "hf_hub_download", lambda repo_id, name, **kwargs: str(tiny_sources.hub / repo_id / name)
        )
        path = write_trained(tmp_path / "t.safetensors", trained_tensors(state))
        with caplog.at_level(logging.WARNING, "modeling_rsmoe"):
            build(NAME, tmp_path, "hub", trained=path, hub_configs=tiny_sources.hub_configs)
        assert "belong to the values of its wheels" in caplog.text


class TestNothingHalfWritten:
    def test_no_space_while_writing(self, tiny_sources, tmp_path, monkeypatch):
        def full(self, folder, **kwargs):
            (Path(folder) / "config.json").write_text("{}")
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(RSMoEForConditionalGeneration, "save_pretrained", full)
        with pytest.raises(RSMoEError, match="out: No space left on device"):
            run(tiny_sources, tiny_sources.wheels, tmp_path / "out", trained=False)
        assert list(tmp_path.iterdir()) == []

    def test_the_weights_cannot_be_written(self, tiny_sources, tmp_path, monkeypatch):
        """A real failure inside safetensors, which has an error class of its own: the file may not grow so large."""
        resource = pytest.importorskip("resource", reason="limits on files are set by POSIX systems only")
        save = RSMoEForConditionalGeneration.save_pretrained
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

        def limited(self, folder, **kwargs):
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
            try:
                save(self, folder, **kwargs)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

        monkeypatch.setattr(RSMoEForConditionalGeneration, "save_pretrained", limited)
        with pytest.raises(RSMoEError, match="cannot write .*out: .*File too large"):
            run(tiny_sources, tiny_sources.wheels, tmp_path / "out", trained=False)
        assert list(tmp_path.iterdir()) == []

    def test_a_disk_too_small_is_noticed_before_downloading(self, tiny_sources, tmp_path, monkeypatch):
        monkeypatch.setattr(assembling.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1000))
        with pytest.raises(RSMoEError, match=r"no space for .*needs \d+ MB"):
            run(tiny_sources, tmp_path / "cache", tmp_path / "a" / "out", trained=False)
        assert list(tmp_path.rglob("*")) == [tmp_path / "a"]

    def test_an_interruption_keeps_the_old_checkpoint(self, tiny_sources, start, tmp_path, monkeypatch):
        output = Path(shutil.copytree(start, tmp_path / "out"))
        before = (output / "model.safetensors").read_bytes()

        def interrupt(self, folder, **kwargs):
            (Path(folder) / "tokenizer.json").write_text("half")
            raise KeyboardInterrupt

        monkeypatch.setattr(assembling.RSMoEProcessor, "save_pretrained", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(tiny_sources, tiny_sources.wheels, output, trained=False, overwrite=True)
        assert (output / "model.safetensors").read_bytes() == before
        assert leftovers(tmp_path) == []

    def test_an_existing_folder_is_refused_unless_overwritten(self, tiny_sources, start, tmp_path):
        output = Path(shutil.copytree(start, tmp_path / "out"))
        (output / "old.txt").write_text("of the old checkpoint")
        with pytest.raises(RSMoEError, match="out exists"):
            run(tiny_sources, tmp_path / "cache", output, trained=False)
        assert (output / "old.txt").exists()
        run(tiny_sources, tiny_sources.wheels, output, trained=False, overwrite=True)
        assert not (output / "old.txt").exists()
        assert (output / "model.safetensors").is_file()
        assert leftovers(tmp_path) == []

    @pytest.mark.parametrize("content", [None, "{}", '{"model_type": "llama"}', "[1]", "\xff"])
    def test_a_folder_of_something_else_is_never_overwritten(self, tiny_sources, tmp_path, content):
        output = tmp_path / "home"
        output.mkdir()
        (output / "thesis.txt").write_text("years of work")
        if content is not None:
            (output / "config.json").write_text(content)
        with pytest.raises(RSMoEError, match="no RS-MoE checkpoint"):
            run(tiny_sources, tiny_sources.wheels, output, trained=False, overwrite=True)
        assert (output / "thesis.txt").read_text() == "years of work"

    def test_a_file_and_a_place_that_cannot_be_written(self, tiny_sources, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(RSMoEError, match="file exists"):
            run(tiny_sources, tiny_sources.wheels, tmp_path / "file", trained=False)
        with pytest.raises(RSMoEError, match="cannot write"):
            run(tiny_sources, tiny_sources.wheels, tmp_path / "file" / "out", trained=False)

    def test_an_empty_folder_is_filled(self, tiny_sources, tmp_path):
        (tmp_path / "a" / "empty").mkdir(parents=True)
        assert (
            run(tiny_sources, tiny_sources.wheels, tmp_path / "a" / "empty", trained=False)
            .joinpath("config.json")
            .is_file()
        )
        assert leftovers(tmp_path / "a") == []


class TestWrongSettings:
    def test_unknown_names_list_the_known_ones(self, tiny_sources, tmp_path):
        with pytest.raises(RSMoEError, match=f"unknown checkpoint 'rs-moe-huge': expected one of {NAME}"):
            assemble("rs-moe-huge", tmp_path / "out", hub_configs=tiny_sources.hub_configs)
        with pytest.raises(RSMoEError, match="unknown source 'cd-rom': expected one of wheel, hub"):
            run(tiny_sources, tmp_path, tmp_path / "out", source="cd-rom")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (
                {"text_config__rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
                "rope_theta 500000.0; the LLM's source says 10000",
            ),
            ({"text_config__num_hidden_layers": 1}, "num_hidden_layers 1; the LLM's source says 2"),
            (
                {"text_config__vocab_size": 270},
                r"the tokenizer has 266 tokens; config.json says text_config.vocab_size 270",
            ),
            (
                {
                    "text_config__vocab_size": 200,
                    "image_token_id": 1,
                    "prompt_token_id": 2,
                    "router_token_id": 3,
                    "expert_token_ids": [4, 5, 6],
                },
                "vocab_size 200; the LLM's source has 260 tokens",
            ),
            ({"image_token_id": 5}, r"the ids \[260, .*config.json says \[5, "),
            ({"vision_config__num_hidden_layers": 4}, "the source of vision_model lacks encoder.layer.3"),
            ({"qformer_config__intermediate_size": 20}, r"the source of qformer does not fit: .*\[24, 16\]"),
            ({"num_query_tokens": 8}, "num_query_tokens 4, config.json 8"),
        ],
    )
    def test_a_configuration_that_does_not_fit_its_sources(self, tiny_sources, configs, tmp_path, change, message):
        change_json(configs / NAME / "config.json", **change)
        with pytest.raises(RSMoEError, match=message):
            assemble(NAME, tmp_path / "out", tiny_sources.wheels, trained=False, hub_configs=configs)
        assert not (tmp_path / "out").exists()
