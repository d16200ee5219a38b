"""Rows come in an order that depends on the seed alone, and are written down as generation writes them."""

import json
import shutil
from collections import Counter
from dataclasses import replace

import pytest
import torch

from modeling_rsmoe import RSMoEError
from modeling_rsmoe.training import Recipe, TrainArguments
from modeling_rsmoe.training.examples import (
    ExampleCollator,
    by_length,
    epoch_examples,
    read_data,
    read_examples,
    training_examples,
)
from modeling_rsmoe.training.modules import select_modules
from modeling_rsmoe.training.trainer import ExampleTrainer

from ..tiny import INSTRUCTIONS, tiny_model, tiny_processor


ONE_STAGE = {"caption_share": 0.3, "answer_share": 0.1, "rewrite_share": 0.1, "router_share": 0.2, "expert_share": 0.3}


def test_shares_of_an_epoch(data):
    recipe = Recipe.of("stage2", **ONE_STAGE)
    examples = epoch_examples(read_data(data, recipe), recipe, INSTRUCTIONS, seed=0, epoch=0, multiple=10)
    kinds = Counter(example.kind for example in examples)
    assert len(examples) % 10 == 0 and kinds.total() == len(examples)
    for kind, share in recipe.shares.items():
        assert kinds[kind] == pytest.approx(share * len(examples), abs=1.5)


@pytest.mark.parametrize("multiple", [1, 7, 16])
def test_an_epoch_is_a_multiple_and_the_same_again(data, multiple):
    recipe = Recipe()
    found = read_data(data, recipe)
    examples = [epoch_examples(found, recipe, INSTRUCTIONS, 3, epoch, multiple) for epoch in (0, 0, 1)]
    assert len(examples[0]) % multiple == 0 and len(examples[0]) == len(examples[2])
    assert examples[0] == examples[1] != examples[2]


def test_similar_lengths_stand_together(data):
    recipe = Recipe()
    examples = epoch_examples(read_data(data, recipe), recipe, INSTRUCTIONS, 0, 0, 4)
    examples = examples * 20
    ordered = by_length(examples, 4, "seed")
    assert Counter(ordered) == Counter(examples)

    def padding(examples):
        lengths = [len(one.prompt.text) + sum(map(len, set(one.completions))) for one in examples]
        return sum(max(lengths[i : i + 4]) * 4 - sum(lengths[i : i + 4]) for i in range(0, len(lengths), 4))

    assert padding(ordered) < padding(examples) / 4


def test_all_examples_of_a_training(data):
    recipe = Recipe()
    found = read_data(data, recipe)
    per_epoch = len(epoch_examples(found, recipe, INSTRUCTIONS, 5, 0, 4))
    table = training_examples(found, recipe, INSTRUCTIONS, 5, 4, epochs=2)
    assert len(table) == 2 * per_epoch
    assert len(training_examples(found, recipe, INSTRUCTIONS, 5, 4, epochs=0.5)) == pytest.approx(per_epoch / 2, abs=4)
    steps = training_examples(found, recipe, INSTRUCTIONS, 5, 4, epochs=1, max_steps=9)
    assert len(steps) == 36 and steps[:per_epoch] == table[:per_epoch]
    assert steps.column_names == ["image", "kind", "expert", "prompt", "qformer_text", "completions"]


def test_extra_examples(data, tmp_path):
    file = tmp_path / "examples.jsonl"
    example = {
        "image": "0.png",
        "kind": "rewrite",
        "expert": None,
        "prompt": "Describe.\ntheme: x",
        "completions": ["y"],
    }
    file.write_text(json.dumps(example) + "\n")
    recipe = Recipe(extra_examples=str(file), caption_share=0, answer_share=0, rewrite_share=0)
    examples = epoch_examples(read_data(data, recipe), recipe, INSTRUCTIONS, 0, 0)
    assert [example.completions for example in examples] == [("y",)] and examples[0].image == (
        data / "0.png"
    ).absolute()
    assert len(training_examples(read_data(data, recipe), recipe, INSTRUCTIONS, 0, 2, epochs=1, max_steps=2)) == 4
    recipe = replace(recipe, caption_share=1.0)
    examples = epoch_examples(read_data(data, recipe), recipe, INSTRUCTIONS, 0, 0, 4)
    assert len(examples) % 4 == 0 and sum(example.completions == ("y",) for example in examples) == 1
    for change, said in [
        ({"kind": "poem"}, r"examples.jsonl:1: kind is 'poem'"),
        ({"expert": "theme"}, "expert is 'theme' in an example of kind rewrite"),
        ({"image": "none.png"}, "none.png is missing"),
        ({"image": "../0.png"}, "leaves the data folder"),
        ({"prompt": ""}, '"prompt" is'),
    ]:
        file.write_text(json.dumps({**example, **change}))
        with pytest.raises(RSMoEError, match=said):
            read_examples(file, data)
    file.write_text("no json")
    with pytest.raises(RSMoEError, match="examples.jsonl:1: not a line of UTF-8 JSON"):
        read_examples(file, data)
    with pytest.raises(RSMoEError, match="every share of examples is 0"):
        empty = Recipe(caption_share=0, answer_share=0, rewrite_share=0)
        epoch_examples(read_data(data, empty), empty, INSTRUCTIONS, 0, 0)


def test_examples_as_tensors(data):
    """Labels are the completions and their ends; an example alone reads as generation reads it."""
    processor = tiny_processor()
    recipe = Recipe.of("stage2", **ONE_STAGE, references_per_example=1)
    examples = training_examples(read_data(data, recipe), recipe, INSTRUCTIONS, 0, 4, epochs=1)
    batch = [examples[i] for i in range(12)]
    collator = ExampleCollator(processor)
    inputs = collator(batch)
    assert inputs["input_ids"].shape[1] % 8 == 0 and inputs["pixel_values"].shape == (12, 3, 28, 28)
    for i, example in enumerate(batch):
        labels = inputs["labels"][i]
        told = processor.tokenizer.decode(labels[labels != -100])
        assert told == f" {example['completions'][0]}<|im_end|>" and labels[-1] == processor.tokenizer.eos_token_id
        name = example["expert"] if example["kind"] == "expert" else example["kind"]
        assert collator.kinds[inputs["kinds"][i]] == name
        real = inputs["attention_mask"][i].bool()
        asked = inputs["input_ids"][i][real & (labels == -100)]
        prompt = processor.render(example["prompt"])
        generated = processor(images=[data / "0.png"], text=[prompt], return_tensors="pt")
        assert torch.equal(asked, generated["input_ids"][0])
        assert inputs["position_ids"][i][real].tolist() == list(range(int(real.sum())))
        instruction = inputs["qformer_input_ids"][i][inputs["qformer_attention_mask"][i].bool()]
        assert torch.equal(instruction, generated["qformer_input_ids"][0])
    adapters = tiny_model().model.get_adapter_ids(inputs["input_ids"])
    expected = {"caption": 0, "answer": 0, "rewrite": 0, "router": 1, "theme": 2, "object": 3, "relation": 4}
    assert [expected[collator.kinds[kind]] for kind in inputs["kinds"]] == adapters.tolist()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("example_weight", [0.0, 0.5, 1.0])
def test_completions_of_one_example_are_learned_as_if_alone(data, attention, example_weight):
    """Loss and gradients of an example with several completions are the mean of examples with one, repeats counted."""
    texts = ["many green trees", "a plane", "many green trees", "the long runway is beside a terminal"]
    kind = {"kind": "expert", "expert": "object", "prompt": "<object> What is there?"}
    together = [
        {"image": str(data / "0.png"), **kind, "completions": texts},
        {"image": str(data / "1.png"), **kind, "completions": ["two boats"]},
    ]
    alone = [{**together[0], "completions": [text]} for text in texts]
    alone += [together[1]] * len(texts)

    def learned(examples):
        model = tiny_model()
        model.set_attn_implementation(attention)
        select_modules(model, Recipe.of("stage1", language_model="full", experts=["all"]))
        trainer = example_trainer(model, Recipe(example_weight=example_weight), data)
        inputs = ExampleCollator(tiny_processor())(examples)
        counts = trainer.count_items([inputs], torch.device("cpu"))
        loss = trainer.compute_loss(model.train(), inputs, num_items_in_batch=counts)
        loss.backward()
        return loss.item(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    (loss, gradients), (expected, expected_gradients) = learned(together), learned(alone)
    assert loss == pytest.approx(expected, abs=1e-6) and gradients.keys() == expected_gradients.keys()
    assert any(gradient.abs().max() > 1e-4 for gradient in gradients.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected_gradients[name], atol=1e-5, rtol=1e-4)


def test_another_attention_takes_no_several_completions(data):
    model = tiny_model()
    trainer = example_trainer(model, Recipe(), data)
    example = {
        "image": str(data / "0.png"),
        "kind": "caption",
        "expert": None,
        "prompt": "x",
        "completions": ["a", "b"],
    }
    model.config.text_config._attn_implementation = "flash_attention_2"
    with pytest.raises(RSMoEError, match="'flash_attention_2' takes no mask .* set references_per_example to 1"):
        trainer.compute_loss(model, ExampleCollator(tiny_processor())([example]))


def example_trainer(model, recipe, data):
    examples = training_examples(read_data(data, recipe), recipe, INSTRUCTIONS, 0, 4, epochs=1, max_steps=1)
    processor = tiny_processor()
    return ExampleTrainer(
        model=model,
        args=TrainArguments(output_dir=str(data / "unused"), save_strategy="no"),
        recipe=recipe,
        train_dataset=examples,
        processing_class=processor,
        data_collator=ExampleCollator(processor),
    )


def test_a_dataset_named_twice_is_drawn_twice_as_often(data):
    once, twice = (read_data(data, Recipe(datasets=["Tiny"] * n, question_datasets=["TinyVQA"] * n)) for n in (1, 2))
    assert len(twice.captions) == 2 * len(once.captions) and len(twice.questions) == 2 * len(once.questions)
    assert twice.images == once.images
    assert len(read_data(data, Recipe(datasets=["Tiny"] * 2), "val").captions) == 4


def test_an_example_for_an_expert_that_is_not_there(data):
    example = {"image": str(data / "0.png"), "kind": "expert", "expert": "color", "prompt": "x", "completions": ["y"]}
    with pytest.raises(RSMoEError, match="for the expert 'color', but the model has theme, object, relation"):
        ExampleCollator(tiny_processor())([example])


def test_a_folder_without_questions(data, tmp_path):
    """It is trained without; one that names datasets of questions is told that they are missing."""
    folder = tmp_path / "captions"
    shutil.copytree(data, folder)
    (folder / "vqa.jsonl").unlink()
    with pytest.raises(RSMoEError, match="vqa.jsonl is missing.*set answer_share and question_share to 0"):
        read_data(folder, Recipe(question_datasets=["TinyVQA"]))
    recipe = Recipe()
    found = read_data(folder, recipe)
    assert found.captions and not found.questions
    assert {example.kind for example in epoch_examples(found, recipe, INSTRUCTIONS, 0, 0)} == {"caption", "rewrite"}
