"""What a training needs: counted without weights, and held against published sizes and against real trainings."""

import gc
import json
import resource
import subprocess
import sys
from dataclasses import dataclass, field

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import DistributedType
from datasets import Dataset
from torch.autograd.graph import saved_tensors_hooks
from transformers import TrainerCallback
from typer.testing import CliRunner

from modeling_rsmoe import RSMoEConfig, RSMoEError
from modeling_rsmoe.cli import app
from modeling_rsmoe.hub.sources import HUB_CONFIGS, known_names
from modeling_rsmoe.training import Recipe, memory, modules, read_settings, stages
from modeling_rsmoe.training.examples import ExampleCollator, read_data, training_examples
from modeling_rsmoe.training.trainer import ExampleTrainer

from ..tiny import INSTRUCTIONS, tiny_config
from .runs import ENVIRONMENT


SIZES = ["rs-moe-1b", "rs-moe-3b", "rs-moe-7b"]
ADDED_TOKENS = 6  # image, prompt, router and three experts
# Parameters of the LLMs as their publishers' weights have them.
LLAMA_1B, LLAMA_3B, VICUNA_7B = 1_235_814_400, 3_212_749_824, 6_738_415_616
STAGES = ["stage1", "stage2"]
LEARNS = {"stage1": {"qformer", "projection", "language_model"}, "stage2": {"router", "experts"}}


def config_of(size: str) -> RSMoEConfig:
    return RSMoEConfig.from_pretrained(HUB_CONFIGS / size)


def settings_of(size: str, stage):
    return read_settings(HUB_CONFIGS / size / "training.yaml", stage, "unused")


# ---- the sizes


@pytest.mark.parametrize(("size", "published"), list(zip(SIZES, [LLAMA_1B, LLAMA_3B, VICUNA_7B])))
def test_sizes_have_the_published_parameters(size, published):
    config = config_of(size)
    model = memory.without_weights(config)
    assert all(parameter.is_meta for parameter in model.parameters())
    counts = memory.count_parameters(model)
    tables = 1 if config.tie_word_embeddings else 2
    assert counts["language_model"] - tables * ADDED_TOKENS * config.text_config.hidden_size == published
    assert round(counts["vision"] / 1e9, 2) == 0.99  # EVA ViT-g/14 as in BLIP-2 and InstructBLIP
    assert round(counts["qformer"] / 1e6) == 186
    assert counts["experts"] == 3 * counts["router"]
    assert sum(counts.values()) == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("size", SIZES)
def test_configurations_are_as_saved(size):
    file = HUB_CONFIGS / size / "config.json"
    config = config_of(size)
    written = json.loads(file.read_text())
    assert json.loads(config.to_json_string()) == {**written, "transformers_version": config.transformers_version}
    first = config.text_config.vocab_size - ADDED_TOKENS
    ids = [config.image_token_id, config.prompt_token_id, *config.adapter_token_ids]
    assert ids == list(range(first, first + ADDED_TOKENS))
    assert size not in known_names()  # its sources are not listed: nothing to assemble


@pytest.mark.parametrize("size", SIZES)
def test_what_learns(size):
    config = config_of(size)
    for stage in STAGES:
        recipe, arguments = settings_of(size, stage)
        model = memory.without_weights(config, recipe, arguments.bf16)
        learned = memory.count_parameters(model, learned=True)
        assert {part for part, count in learned.items() if count} == LEARNS[stage]
        assert sum(learned.values()) == sum(p.numel() for p in modules.trained_parameters(model).values())
        if stage == "stage2":
            rank = config.router_config.r
            text = config.text_config
            width, inner = text.hidden_size, text.intermediate_size
            keys = text.num_key_value_heads * text.head_dim
            pairs = 2 * (width + width) + 2 * (width + keys) + 3 * (width + inner)  # q, o; k, v; gate, up, down
            assert learned["router"] == text.num_hidden_layers * rank * pairs
        halved = {p.dtype for p in model.model.language_model.parameters() if not p.requires_grad}
        assert halved == {torch.bfloat16}


@pytest.mark.slow
def test_no_weight_is_allocated():
    """The 7b's layers, two of them: 5 GB in float32."""
    config = config_of("rs-moe-7b")
    config.text_config.num_hidden_layers = 2
    recipe, arguments = settings_of("rs-moe-7b", "stage1")
    gc.collect()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model = memory.without_weights(config, recipe)
    needed = memory.step_memory(model, "DDP", 1, bf16=False)
    kept, checkpointed = memory.activation_bytes(config, recipe, memory.Batch(16), arguments.bf16)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert needed.weights > 6e9 and kept > checkpointed > 5e8 and grown < 3e8


# ---- against a real training


@dataclass
class Measured(TrainerCallback):
    """Bytes that a training has, entered as it runs."""

    gradients: int = 0
    optimizer: int = 0
    losses: list[float] = field(default_factory=list)
    saved: int = 0  # in tensors kept for the backward pass, in one step
    peak: int = 0

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.gradients = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)

    def on_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        states = optimizer.state.values()
        self.optimizer = sum(state[name].nbytes for state in states for name in ("exp_avg", "exp_avg_sq"))

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.losses += [logs["loss"]] if "loss" in logs else []


def measured_training(stage, start, settings_file, output, table, **changes) -> tuple[ExampleTrainer, Measured]:
    """Train on `table`, one batch for each step, and measure."""
    torch.set_num_threads(1)
    words = [word for name, value in changes.items() for word in (f"--{name}", *str(value).split())]
    recipe, arguments = read_settings(settings_file, stage, output, words)
    model, processor = stages.load_start(start, recipe)
    torch.manual_seed(0)
    selected = modules.select_modules(model, recipe)
    if arguments.bf16:
        modules.cast_base_lm(model)
    arguments.max_steps = len(table) // arguments.per_device_train_batch_size
    arguments.save_strategy = "no"
    trainer = ExampleTrainer(
        model=selected,
        args=arguments,
        recipe=recipe,
        train_dataset=table,
        processing_class=processor,
        data_collator=ExampleCollator(processor),
    )
    measured = Measured()
    trainer.add_callback(measured)
    step = trainer.training_step

    def measured_step(*args, **kwargs):
        packed = []

        def pack(tensor):
            packed.append(tensor.nbytes)
            return tensor

        with memory.PeakMemory(model) as peak, saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = step(*args, **kwargs)
        measured.saved, measured.peak = max(measured.saved, sum(packed)), max(measured.peak, peak.peak)
        return loss

    trainer.training_step = measured_step
    trainer.train()
    return trainer, measured


def mixed_examples(stage, data, batch: int):
    """Rows with several completions, of the base LM, or of router and experts."""
    recipe = Recipe.of(stage)
    table = training_examples(read_data(data, recipe), recipe, INSTRUCTIONS, 0, batch, 1, 4)
    assert any(len(set(example["completions"])) > 1 for example in table)
    kinds = {(example["kind"], example["expert"]) for example in table}
    assert len(kinds) > 2, kinds
    return table


@pytest.mark.slow
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("stage", STAGES)
def test_states_are_those_of_a_real_training(start, data, settings_file, tmp_path, stage, bf16):
    table = mixed_examples(stage, data, 4)
    trainer, measured = measured_training(stage, start, settings_file, tmp_path, table, bf16=bf16)
    recipe, _ = read_settings(settings_file, stage, tmp_path)
    model = memory.without_weights(RSMoEConfig.from_pretrained(start), recipe, bf16)
    expected = memory.step_memory(model, "DDP", 1, bf16)
    assert expected.weights == sum(parameter.nbytes for parameter in trainer.model.parameters()) > 0
    assert expected.gradients == measured.gradients > 0
    assert expected.optimizer == measured.optimizer > 0
    assert expected.buffers == 0


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("stage", STAGES)
def test_activations_are_those_of_a_real_step(start, data, settings_file, tmp_path, stage, bf16, checkpointing):
    """Within 2 %, all examples being about as long."""
    image = str(data / "0.png")
    example = {"image": image, "completions": ["some green trees .", "two white planes ."]}
    if stage == "stage1":
        table = [{**example, "kind": "caption", "expert": None, "prompt": "what is it?"}] * 4
    else:
        adapters = [("router", "theme", "<router> theme: what"), ("expert", "theme", "<theme> what is it?")]
        adapters += [("expert", "object", "<object> what is i?"), ("expert", "relation", "<relation> what is?")]
        table = [{**example, "kind": kind, "expert": name, "prompt": prompt} for kind, name, prompt in adapters]
    changes = {"bf16": bf16, "activation_checkpointing": checkpointing, "lora_dropout": 0}
    trainer, measured = measured_training(stage, start, settings_file, tmp_path, Dataset.from_list(table), **changes)
    inputs = trainer.data_collator(table)
    batch = memory.Batch(
        examples=4,
        tokens=inputs["input_ids"].shape[1],
        labels=int((inputs["labels"] != -100).sum()) // 4,
        qformer_tokens=inputs["qformer_input_ids"].shape[1],
    )
    recipe, _ = read_settings(settings_file, stage, tmp_path, ["--lora_dropout", "0"])
    estimates = memory.activation_bytes(RSMoEConfig.from_pretrained(start), recipe, batch, bf16)
    assert measured.peak == pytest.approx(estimates[checkpointing], rel=0.02)


RESIDENT = """
import resource, sys
import torch
from modeling_rsmoe import RSMoEConfig, RSMoEForConditionalGeneration
from modeling_rsmoe.training import Recipe, memory, modules

def pages(name):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(name))

torch.set_num_threads(1)
config = RSMoEConfig(
    vision_config={"model_type": "dinov2", "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2},
    qformer_config={"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 256},
    text_config={"model_type": "llama", "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6,
                 "num_attention_heads": 4, "vocab_size": 2006},
)
batch = memory.Batch(16, 160, 80, image_size=224)
for stage in sys.argv[1:]:
    recipe = Recipe.of(stage)
    estimated = memory.activation_bytes(config, recipe, batch, bf16=False)[0]
    model = RSMoEForConditionalGeneration(config).train()
    modules.select_modules(model, recipe)
    small = memory.Batch(1, 40, 4, image_size=224)
    memory._loss(model, recipe, small, False).backward()  # makes libraries and gradients
    open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
    before = pages("VmRSS")
    memory._loss(model, recipe, batch, False).backward()
    print(estimated, pages("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_activations_are_the_memory_that_the_system_gives():
    """Within a tenth in each stage, where freed memory goes back to the system at once."""
    environment = {**ENVIRONMENT, "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-c", RESIDENT, *STAGES]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    figures = [tuple(map(int, line.split())) for line in result.stdout.splitlines()]
    assert len(figures) == len(STAGES)
    for estimated, measured in figures:
        assert estimated > 1e8 and measured == pytest.approx(estimated, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_checkpointing_changes_memory_only(start, data, settings_file, tmp_path, stage):
    """A batch of several adapters and several completions; layers are computed again with their own sequences."""
    table = mixed_examples(stage, data, 4)
    runs = []
    for checkpointing in (False, True):
        changes = {"activation_checkpointing": checkpointing, "lora_dropout": 0}
        runs.append(measured_training(stage, start, settings_file, tmp_path / str(checkpointing), table, **changes))
    (kept, measured), (checkpointed, measured_again) = runs
    assert len(measured.losses) == 4 and measured.losses == measured_again.losses
    first, second = (modules.trained_parameters(trainer.model) for trainer in (kept, checkpointed))
    began = dict(stages.load_start(start, Recipe())[0].named_parameters())
    assert first.keys() == second.keys()
    moved = 0
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=1e-5, atol=1e-7)
        own = name.removeprefix("base_model.model.")
        moved += own in began and not torch.equal(value, began[own])
    assert moved > 10
    assert measured_again.saved < 0.5 * measured.saved and measured_again.peak < 0.8 * measured.peak


# ---- over several devices


def test_deepspeeds_own_formulas():
    """Where all parameters learn: `estimate_zero2_model_states_mem_needs`, `estimate_zero3_model_states_mem_needs`."""
    everything = Recipe(vision="full", language_model="full", router="train", experts=["all"])
    model = memory.without_weights(tiny_config(), everything, bf16=True)
    learned = sum(parameter.numel() for parameter in modules.trained_parameters(model).values())
    total = sum(parameter.numel() for parameter in model.parameters())
    assert total - learned == model.config.vision_config.hidden_size  # but for DINOv2's mask token
    for processes in (2, 4, 8):
        for strategy, formula in (
            ("ZeRO-2", 2 * total + 18 * learned / processes),
            ("ZeRO-3", 18 * learned / processes + 2 * (total - learned) / processes),
        ):
            needed = memory.step_memory(model, strategy, processes, bf16=True)
            assert needed.weights + needed.gradients + needed.optimizer == pytest.approx(formula, abs=32)


def test_more_devices_need_less_each():
    recipe = Recipe.of("stage2")
    model = memory.without_weights(tiny_config(), recipe)
    alone = memory.step_memory(model, "DDP", 1, bf16=False, activations=100)
    copies = memory.step_memory(model, "DDP", 8, bf16=False, activations=100)
    assert copies.total == alone.total + alone.gradients  # gradients are copied to be sent
    spread = [memory.step_memory(model, "FSDP", count, bf16=False, activations=100) for count in (1, 2, 4)]
    assert spread[0].weights == alone.weights and spread[0].optimizer == alone.optimizer
    for count, needed in zip((1, 2, 4), spread):
        assert alone.weights <= count * needed.weights < 1.2 * alone.weights
        assert needed.buffers == spread[0].buffers > 0
    assert memory.Memory(1, 2, 3, 4, activations=5, step=6).total == 16


def test_copied_experts_are_refused():
    config = tiny_config(expert_config={"expert_type": "full"})
    recipe = Recipe.of("stage2")
    with pytest.raises(RSMoEError, match="FSDP cannot spread"):
        memory.step_memory(memory.without_weights(config, recipe), "FSDP", 2, bf16=False)
    with pytest.raises(RSMoEError, match="'full'.*type 'lora'"):
        memory.activation_bytes(config, recipe, memory.Batch(2), bf16=False)


@pytest.mark.parametrize("name", ["fsdp", "deepspeed_zero2", "deepspeed_zero3"])
def test_files_of_accelerate(name):
    """accelerate reads them, and knows every setting in them."""
    file = HUB_CONFIGS / "accelerate" / f"{name}.yaml"
    config = load_config_from_file(str(file))
    kind = DistributedType.FSDP if name == "fsdp" else DistributedType.DEEPSPEED
    assert config.distributed_type == kind and config.mixed_precision == "bf16"
    known = {action.dest for action in launch_command_parser()._actions}
    settings = config.fsdp_config or config.deepspeed_config
    assert settings and set(settings) <= known
    if name != "fsdp":
        assert f"deepspeed_zero{settings['zero_stage']}" == name


@pytest.mark.parametrize("size", SIZES)
def test_units_of_fsdp_are_in_the_model(size):
    named = yaml.safe_load((HUB_CONFIGS / "accelerate" / "fsdp.yaml").read_text())["fsdp_config"]
    model = memory.without_weights(config_of(size))
    layer_classes = {type(layer).__name__ for layer in memory.sharded_layers(model)}
    assert sorted(named["fsdp_transformer_layer_cls_to_wrap"].split(",")) == sorted(layer_classes)
    assert layer_classes <= {type(module).__name__ for module in model.modules()}


# ---- the command


@pytest.mark.slow
def test_command(start, settings_file, tmp_path):
    arguments = ["train", "estimate", str(start), "--config", str(settings_file), "--processes", "1"]
    arguments += ["--processes", "4", "--tokens", "64", "--markdown"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    config = RSMoEConfig.from_pretrained(start)
    counts = memory.count_parameters(memory.without_weights(config))
    for part, count in counts.items():
        assert f"| {part} | {count / 1e6:,.1f} |" in result.stdout
    examples = [line for line in result.stdout.splitlines() if line.startswith(("| one device", "| 4 x"))]
    assert [example.split(" | ")[0] for example in examples] == [
        "| one device",
        *(f"| 4 x {s}" for s in memory.STRATEGIES),
    ] * 2


def test_command_refuses(tmp_path):
    for arguments, said in (
        (["rs-moe-70b"], "rs-moe-70b has no config.json.*one of rs-moe-1b, rs-moe-3b, rs-moe-7b, rs-moe-nano"),
        (["rs-moe-1b", "--config", str(tmp_path / "none.yaml")], "there is no file .*none.yaml"),
    ):
        result = CliRunner().invoke(app, ["train", "estimate", *arguments], standalone_mode=False)
        with pytest.raises(RSMoEError, match=said):
            raise result.exception
