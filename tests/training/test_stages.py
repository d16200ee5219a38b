"""What learns in which stage, what is written, and what the loss is."""

import json
import resource
from dataclasses import asdict

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file

from modeling_rsmoe import RSMoEError, RSMoEForConditionalGeneration, RSMoEProcessor
from modeling_rsmoe.hub.facts import read_facts
from modeling_rsmoe.hub.sources import HUB_CONFIGS
from modeling_rsmoe.training import Recipe, modules, read_settings, stages, train_stage
from modeling_rsmoe.training.checkpoints import save_tensors
from modeling_rsmoe.training.examples import ExampleCollator, read_data, training_examples
from modeling_rsmoe.training.trainer import ExampleTrainer

from ..tiny import INSTRUCTIONS, tiny_config, tiny_model, tiny_processor, tiny_start


pytestmark = pytest.mark.slow


def train(stage, start, data, features, settings_file, output, **changes):
    torch.set_num_threads(1)
    words = [word for name, value in changes.items() for word in (f"--{name}", *str(value).split())]
    recipe, arguments = read_settings(settings_file, stage, output, words)
    return train_stage(stage, recipe, arguments, data, output, start, features=features)


def moved(start, output) -> set[str]:
    """Names of the modules whose weights are not the start's."""
    before, after = load_file(start / "model.safetensors"), load_file(output / "model.safetensors")
    assert before.keys() == after.keys()
    return {modules.module_of(name) for name in before if not torch.equal(before[name], after[name])}


@pytest.fixture(scope="module")
def stage1(start, data, features, settings_file, tmp_path_factory):
    return train("stage1", start, data, features, settings_file, tmp_path_factory.mktemp("run") / "stage1")


def test_stage1(start, stage1):
    assert moved(start, stage1) == {"qformer", "projection", "language_model"}
    model = RSMoEForConditionalGeneration.from_pretrained(stage1)
    inputs = RSMoEProcessor.from_pretrained(stage1)(
        images=Image.new("RGB", (40, 40)), text="What?", return_tensors="pt"
    )
    assert model.generate(**inputs).shape[0] == 1 and model.dtype == torch.float32
    log = json.loads((stage1 / "trainer_state.json").read_text())["log_history"]
    assert {"loss", "loss_caption", "loss_answer", "loss_rewrite"} <= {name for entry in log for name in entry}
    assert Image.open(stage1 / "loss.png").size[0] > 500
    assert json.loads((stage1 / "training_args.json").read_text())["learning_rate"] == 1e-3
    record = json.loads((stage1 / "training.json").read_text())
    assert record["finished"] and record["steps"] == 4 and len(record["data"]["sha256"]) == 64


def test_tensorboard(stage1):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(stage1 / "tensorboard" / "stage1"))
    events.Reload()
    scalars = events.Tags()["scalars"]
    assert {"train/loss", "train/loss_caption", "train/loss_answer"} <= set(scalars)
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4]


def test_what_is_written_is_what_was_learned(start, stage1):
    """The merged LoRA says what the model under training said."""
    recipe = Recipe(lora_r=2, lora_alpha=4)
    model, processor = stages.load_start(start, recipe)
    selected = modules.select_modules(model, recipe)
    stages.load_parameters(selected, stage1 / ".training" / "learned.safetensors")
    inputs = processor(
        images=Image.new("RGB", (28, 28), "red"), text="What?", expert_inputs=False, return_tensors="pt"
    )
    with torch.no_grad():
        expected = selected.eval()(**inputs).logits
        found = RSMoEForConditionalGeneration.from_pretrained(stage1)(**inputs).logits
        before = RSMoEForConditionalGeneration.from_pretrained(start)(**inputs).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert (found - before).abs().max() > 1e-2


def test_stage2(start, stage1, data, features, settings_file, tmp_path):
    output = train("stage2", stage1, data, features, settings_file, tmp_path / "stage2", eval_examples=6, max_steps=8)
    assert moved(stage1, output) == {"router", "experts"}
    record = json.loads((output / "training.json").read_text())
    assert record["before"]["stage"] == "stage1" and record["before"]["start"]["name"] == start.name
    log = json.loads((output / "trainer_state.json").read_text())["log_history"]
    names = {name for entry in log for name in entry}
    assert {"loss_router", "loss_theme", "loss_object", "loss_relation", "eval_loss", "eval_loss_router"} <= names


def test_stage2_wants_stage1(start, stage1, data, features, settings_file, tmp_path):
    untrained = tiny_start(tmp_path / "untrained")
    with pytest.raises(RSMoEError, match="has no finished stage 1.*one_stage"):
        train("stage2", untrained, data, features, settings_file, tmp_path / "a")
    shares = {"caption_share": 0.4, "router_share": 0.2, "expert_share": 0.4}
    learning = {"qformer": "queries", "projection": "full", "language_model": "lora", "lora_r": 2}
    output = train(
        "stage2", start, data, features, settings_file, tmp_path / "b", one_stage=True, **shares, **learning
    )
    assert moved(start, output) == {"qformer", "projection", "language_model", "router", "experts"}
    with pytest.raises(RSMoEError, match="no checkpoint to begin from"):
        train("stage2", None, data, features, settings_file, tmp_path / "c")
    with pytest.raises(RSMoEError, match="holds a finished training"):
        train("stage2", stage1, data, features, settings_file, output)


def test_stage2_takes_what_was_saved_by_other_means(stage1, data, features, settings_file, tmp_path):
    """Without training.json: config.json says that stage 1 was trained. Its record and the card's go on from there."""
    saved = tmp_path / "saved"
    RSMoEForConditionalGeneration.from_pretrained(stage1).save_pretrained(saved, save_original_format=False)
    RSMoEProcessor.from_pretrained(stage1).save_pretrained(saved)
    assert not (saved / "training.json").exists()
    output = train("stage2", saved, data, features, settings_file, tmp_path / "stage2", max_steps=1)
    names = [step.name for step in read_facts(stage1).steps]
    assert names[-1] == "stage 1" and [step.name for step in read_facts(output).steps] == [*names, "stage 2"]
    assert json.loads((output / "config.json").read_text())["provenance"]["training"][-1]["name"] == "stage 2"


def test_one_expert_without_router(stage1, data, features, settings_file, tmp_path):
    output = train(
        "stage2",
        stage1,
        data,
        features,
        settings_file,
        tmp_path / "one",
        expert_names="object",
        router="frozen",
        router_share=0,
    )
    model, processor = RSMoEForConditionalGeneration.from_pretrained(output), RSMoEProcessor.from_pretrained(output)
    assert list(model.model.experts) == ["object"] == processor.experts
    assert model.config.expert_token_ids == [processor.tokenizer.convert_tokens_to_ids("<object>")]
    said = model.generate(
        **processor(images=Image.new("RGB", (28, 28)), text="What?", return_tensors="pt"), return_dict_in_generate=True
    )
    assert list(processor.post_process_generation(said)[0]["expert_texts"]) == ["object"]
    with pytest.raises(RSMoEError, match="expert_names is .*color.*has theme, object, relation"):
        train("stage2", stage1, data, features, settings_file, tmp_path / "no", expert_names="color")


def test_shipped_weights_have_a_stage1_behind_them(tmp_path):
    """So that a stage 2 can begin at an assembled nano. The first and the last part have the settings that are
    shipped, but for the options that docs/lab-notebook/training.md gives them."""
    folder = HUB_CONFIGS / "rs-moe-nano"
    record = json.loads((folder / "trained.json").read_text())
    assert stages._has_stage1(folder, record) and not stages._has_stage1(folder, {**record, "before": None})
    first = record
    while first.get("before"):
        first = first["before"]
    questions = [
        *["RSVQA-LR", "RSVQA-HR"],
        *["RSIVQA-UCM"] * 3,
        "RSICD-labels",
        "UCM-Captions-labels",
        "EuroSAT-labels",
    ]
    options = {"stage2": ["--question_datasets", *questions], "stage1": ["--detail_share", "0"]}
    for stage, told in (("stage2", record), ("stage1", first)):
        recipe, arguments = read_settings(folder / "training.yaml", stage, tmp_path, options[stage])
        assert told["stage"] == stage and {**asdict(recipe), **told["recipe"]} == asdict(recipe)
        assert told["steps"] == arguments.max_steps and len(told["data"]["sha256"]) == 64


def test_features_of_no_more_images_than_are_learned(start, stage1, data, settings_file, tmp_path):
    changes = {"max_steps": 1, "per_device_train_batch_size": 2, "eval_examples": 1}
    output = train("stage2", stage1, data, tmp_path / "features", settings_file, tmp_path / "2", **changes)
    (index,) = (tmp_path / "features").glob("*/index.json")
    assert 1 <= len(json.loads(index.read_text())["images"]) <= 3
    assert "eval_loss" in {
        name for entry in json.loads((output / "trainer_state.json").read_text())["log_history"] for name in entry
    }


@pytest.mark.parametrize(
    ("changes", "learned"),
    [
        ({"qformer": "queries", "projection": "frozen", "language_model": "frozen"}, {"qformer", "projection"}),
        ({"qformer": "frozen", "projection": "full", "language_model": "frozen"}, {"projection"}),
        (
            {"qformer": "lora", "projection": "frozen", "language_model": "lora"},
            {"qformer", "projection", "language_model"},
        ),
        ({"qformer": "frozen", "projection": "frozen", "language_model": "full"}, {"language_model"}),
        ({"vision": "full", "qformer": "frozen", "projection": "frozen", "language_model": "frozen"}, {"vision"}),
        ({"qformer": "frozen", "projection": "frozen", "language_model": "frozen", "experts": ["theme"]}, {"experts"}),
        ({"qformer": "frozen", "projection": "frozen", "language_model": "frozen", "router": "train"}, {"router"}),
    ],
)
def test_which_modules_learn(changes, learned):
    """Everything selected gets a gradient, and nothing else does."""
    recipe = Recipe(**changes)
    model, processor = tiny_model(), tiny_processor()
    selected = modules.select_modules(model, recipe).train()
    examples = [{"image": Image.new("RGB", (28, 28), "red"), "expert": None, "prompt": "What?", "completions": ["a"]}]
    examples = [{**examples[0], "kind": "caption"}]
    for name, prompt in (("theme", "<theme> What?"), ("object", "<object> What?")):
        examples.append({**examples[0], "kind": "expert", "expert": name, "prompt": prompt})
    examples.append({**examples[0], "kind": "router", "expert": "theme", "prompt": "<router> theme: What?"})
    collator = ExampleCollator(processor)
    collator._images = lambda images: {  # type: ignore[method-assign]
        "pixel_values": processor.image_processor(images=images, return_tensors="pt")["pixel_values"]
    }
    inputs = {name: value for name, value in collator(examples).items() if name != "kinds"}
    selected(**inputs).loss.backward()
    names = {name for name, parameter in selected.named_parameters() if parameter.grad is not None}
    chosen = set(modules.trained_parameters(selected))
    assert {modules.module_of(name) for name in chosen} == learned and names <= chosen
    assert {modules.module_of(name) for name in names} == learned
    if changes["qformer"] == "queries":
        assert not any("embeddings" in name or ".output.dense" in name and "attention" not in name for name in chosen)
    if learned == {"experts"}:
        assert all(".experts.theme." in name for name in chosen)


def test_nothing_learns():
    frozen = {"qformer": "frozen", "projection": "frozen", "language_model": "frozen"}
    with pytest.raises(RSMoEError, match="no trainable parameters"):
        modules.select_modules(tiny_model(), Recipe(**frozen))
    with pytest.raises(RSMoEError, match="the model has no color; it has theme, object, relation"):
        modules.select_modules(tiny_model(), Recipe(**frozen, experts=["color"]))


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_where_experts_begin(kind):
    model = tiny_model(config=tiny_config(expert_config={"expert_type": kind}))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    inputs = tiny_processor()(images=Image.new("RGB", (28, 28)), text="<image><theme>x", return_tensors="pt")
    plain = tiny_processor()(images=Image.new("RGB", (28, 28)), text="<image>x", return_tensors="pt")

    def apart() -> float:
        ids = {**inputs, "input_ids": plain["input_ids"], "attention_mask": plain["attention_mask"]}
        with torch.no_grad():
            logits = [model(**ids, adapter_ids=torch.tensor([adapter])).logits for adapter in (0, 2)]
        return (logits[0] - logits[1]).abs().max().item()

    modules.initialize_adapters(model, Recipe.of("stage2", expert_start="checkpoint"))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    modules.initialize_adapters(model, Recipe.of("stage2", expert_start="base", experts=["theme"]))
    assert apart() < 1e-5
    kept = model.state_dict()
    assert all(torch.equal(value, before[name]) for name, value in kept.items() if ".experts.object." in name)
    modules.initialize_adapters(model, Recipe.of("stage2", expert_start="random"))
    assert apart() > 1e-3


def test_learning_rates():
    model = tiny_model()
    recipe = Recipe(
        language_model="full",
        qformer_learning_rate=0.1,
        projection_learning_rate=0.2,
        language_model_learning_rate=0.3,
    )
    modules.select_modules(model, recipe)
    groups = modules.learning_rate_groups(model, recipe, default=1.0, weight_decay=0.5)
    rate = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    for name, parameter in modules.trained_parameters(model).items():
        expected = {"qformer": 0.1, "projection": 0.2, "language_model": 0.3}[modules.module_of(name)]
        assert rate[id(parameter)] == (expected, 0.5 if parameter.ndim > 1 else 0.0)


def test_half_precision(start, data, features, settings_file, tmp_path):
    """Frozen weights of the base LM are halved, what learns is not; the checkpoint has the start's frozen weights."""
    model = tiny_model()
    modules.select_modules(model, Recipe(language_model="lora", lora_r=2))
    modules.cast_base_lm(model)
    dtypes = {name: p.dtype for name, p in model.named_parameters()}
    assert {
        dtypes[name] for name in dtypes if modules.module_of(name) == "language_model" and "lora_" not in name
    } == {torch.bfloat16}
    assert all(p.dtype == torch.float32 for p in modules.trained_parameters(model).values())
    changes = {"lora_dropout": 0, "alignment_steps": 2, "alignment_batch_size": 4}
    whole = train("stage1", start, data, features, settings_file, tmp_path / "whole", **changes)
    half = train("stage1", start, data, features, settings_file, tmp_path / "half", **changes, bf16=True)
    aligned = [load_file(folder / ".training" / "alignment.safetensors") for folder in (whole, half)]
    assert all(torch.equal(aligned[0][name], aligned[1][name]) for name in aligned[0])  # the alignment is in float32
    before, after = load_file(start / "model.safetensors"), load_file(half / "model.safetensors")
    name = "model.language_model.embed_tokens.weight"
    assert after[name].dtype == torch.float32 and torch.equal(after[name], before[name])
    losses = [
        [entry["loss"] for entry in json.loads((folder / "trainer_state.json").read_text())["log_history"]]
        for folder in (whole, half)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=0.02) and losses[0] != losses[1]


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_the_loss(start, data, features, settings_file, tmp_path, weight):
    """Of labelled positions only, counted by tokens and by examples over all batches of a step."""
    recipe, arguments = read_settings(
        settings_file, "stage1", tmp_path, ["--example_weight", str(weight), "--references_per_example", "1"]
    )
    model, processor = stages.load_start(start, recipe)
    table = training_examples(read_data(data, recipe), recipe, INSTRUCTIONS, 0, 4, 1)
    collator = ExampleCollator(processor)
    trainer = ExampleTrainer(
        model=model,
        args=arguments,
        recipe=recipe,
        train_dataset=table,
        processing_class=processor,
        data_collator=collator,
    )
    model.eval()
    batches = [collator([table[i] for i in (0, 1, 2, 3)]), collator([table[4]])]
    counts = trainer.count_items(batches, torch.device("cpu"))
    expected_token, expected_row, tokens = 0.0, 0.0, 0
    for batch in batches:
        inputs = {name: value for name, value in batch.items() if name not in ("kinds", "labels")}
        logits = model(**inputs).logits[:, :-1]
        each = F.cross_entropy(logits.transpose(1, 2), batch["labels"][:, 1:], ignore_index=-100, reduction="none")
        number = (batch["labels"] != -100).sum(1)
        tokens += int(number.sum())
        expected_token += each.sum().item()
        expected_row += (each.sum(1) / number).sum().item()
    expected = (1 - weight) * expected_token / tokens + weight * expected_row / 5
    loss = sum(trainer.compute_loss(model, dict(batch), num_items_in_batch=counts).item() for batch in batches)
    assert loss == pytest.approx(expected, rel=1e-5)


def test_gradient_accumulation_is_a_larger_batch(start, data, features, settings_file, tmp_path):
    whole = train("stage2", start, data, features, settings_file, tmp_path / "whole", one_stage=True, max_steps=2)
    parted = train(
        "stage2",
        start,
        data,
        features,
        settings_file,
        tmp_path / "parted",
        one_stage=True,
        max_steps=2,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        activation_checkpointing=True,
    )
    logs = [json.loads((run / "trainer_state.json").read_text())["log_history"] for run in (whole, parted)]
    assert [entry["loss"] for entry in logs[0]] == pytest.approx([entry["loss"] for entry in logs[1]], abs=1e-4)


def test_lost_image(start, data, features, settings_file, tmp_path):
    import shutil

    copy = tmp_path / "data"
    shutil.copytree(data, copy)
    (copy / "3.png").unlink()
    with pytest.raises(RSMoEError, match=r"3\.png"):
        train("stage1", start, copy, features, settings_file, tmp_path / "output")


def test_a_real_full_disk(tmp_path):
    """The file system itself refuses: the file that was there is there still, and nothing else."""
    file = tmp_path / "weights.safetensors"
    save_tensors({"a": torch.ones(3)}, file)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match="weights.safetensors"):
            save_tensors({"a": torch.ones(10_000)}, file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == [file.name] and torch.equal(
        load_file(file)["a"], torch.ones(3)
    )


def test_weights_of_another_model(tmp_path):
    save_file({"model.encoder.projection.weight": torch.zeros(2, 2)}, tmp_path / "x.safetensors")
    with pytest.raises(RSMoEError, match=r"projection.weight \(2, 2\) does not fit"):
        stages.load_parameters(tiny_model(), tmp_path / "x.safetensors")
