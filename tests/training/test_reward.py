"""Self-critical training: what a caption earns, what is learned from it, and a whole training by it."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from pycocoevalcap.cider.cider_scorer import CiderScorer
from torch import nn

from modeling_rsmoe import RSMoEError
from modeling_rsmoe.evaluation.objects import ObjectLabels
from modeling_rsmoe.hub.facts import read_facts
from modeling_rsmoe.training import Recipe, TrainArguments
from modeling_rsmoe.training.examples import ExampleCollator, read_data, training_examples
from modeling_rsmoe.training.modules import select_modules
from modeling_rsmoe.training.reward import END, CaptionReward, RewardTrainer, _frozen_in_bfloat16, advantages
from modeling_rsmoe.training.trainer import ExampleTrainer

from ..tiny import INSTRUCTIONS, tiny_model, tiny_processor
from .test_stages import moved, train


REFERENCES = [
    ["Many planes are parked in an airport.", "some planes are near a terminal .", "an airport with planes ."],
    ["there are many green trees .", "It is a forest.", "it is a forest ."],
    ["a bridge is over a river .", "A long bridge, and a river."],
    ["a road is near some green trees ."],
]
TEXTS = ["Many planes are in an airport.", "it is a forest", "a bridge and many green trees .", ""]
BY_REWARD = {"caption_loss": "reward", "caption_share": 1, "answer_share": 0, "rewrite_share": 0}


def test_reward_is_cider_d_with_the_end_as_a_word():
    def words(text):
        return " ".join([*text.lower().replace(".", " ").replace(",", " ").split(), END])

    scorer = CiderScorer(n=4)
    for text, references in zip(TEXTS, REFERENCES):
        scorer += (words(text), [words(reference) for reference in references])
    _, expected = scorer.compute_score()
    reward = CaptionReward(REFERENCES)
    found = [reward([text], references, Path("x"))[0] for text, references in zip(TEXTS, REFERENCES)]
    assert found == pytest.approx(list(expected)) and found[0] > 1 and found[3] == 0
    cut, whole = reward(["it is a", "it is a forest"], REFERENCES[1], Path("x"))
    assert whole == found[1] > cut


def test_objects_that_are_not_there_cost():
    labels = {Path("a.png"): ObjectLabels(frozenset({"airplane"}), frozenset({"ship", "buildings"}))}
    reward, plain = CaptionReward(REFERENCES, labels, object_penalty=0.5), CaptionReward(REFERENCES)
    texts = ["planes", "boats", "boats near houses", "trees"]  # trees are not labelled
    for image, costs in (("a.png", [0, 0.5, 1, 0]), ("other.png", [0, 0, 0, 0])):
        rewards, before = (judge(texts, REFERENCES[0], Path(image)) for judge in (reward, plain))
        assert [b - r for b, r in zip(before, rewards)] == pytest.approx(costs)


def test_advantages_are_above_the_others():
    assert advantages([1.0, 2.0, 6.0]) == pytest.approx([-3.0, -1.5, 4.5])
    assert advantages([2.0, 2.0]) == [0.0, 0.0]


def reward_trainer(model, data, reward):
    recipe = Recipe(**BY_REWARD | {"caption_share": 0.5, "answer_share": 0.5})
    processor = tiny_processor()
    return RewardTrainer(
        reward=reward,
        model=model,
        args=TrainArguments(output_dir=str(data / "unused"), save_strategy="no"),
        recipe=recipe,
        train_dataset=training_examples(read_data(data, recipe), recipe, INSTRUCTIONS, 0, 4, epochs=1),
        processing_class=processor,
        data_collator=ExampleCollator(processor),
    )


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_loss_is_the_advantage_times_the_cross_entropy(data, attention, monkeypatch):
    """Of each text in a sequence of its own; one that came twice has both advantages. An answer is learned as is."""
    texts, rewards = ["many green trees", "a plane", "a plane", "two boats are there"], [1.0, 3.0, 2.0, 0.5]
    caption = {"image": str(data / "0.png"), "kind": "caption", "expert": None, "prompt": "Describe the image."}
    answer = {**caption, "kind": "answer", "prompt": "Is there a plane?", "completions": ["yes it is"]}
    model = tiny_model()
    model.set_attn_implementation(attention)
    select_modules(model, Recipe(language_model="full"))
    trainer = reward_trainer(model, data, lambda *_: rewards)
    monkeypatch.setattr(trainer, "_write", lambda examples: [texts] * len(examples))
    batch = {"examples": [{**caption, "completions": ["a reference"]}, answer]}
    counts = trainer.count_items([batch], torch.device("cpu"))
    loss = trainer.training_step(model, batch, counts)
    gradients = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    model.zero_grad()

    collator, expected = ExampleCollator(tiny_processor()), 0.0
    weights = [value / len(texts) for value in advantages(rewards)]
    for example, text, weight in [*[(caption, *pair) for pair in zip(texts, weights)], (answer, "yes it is", None)]:
        inputs = collator([{**example, "completions": [text]}])
        labels = inputs.pop("labels")
        for name in ("kinds", "token_weights", "example_weights"):
            inputs.pop(name)
        logits = model(**inputs).logits[:, :-1]
        losses = F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100, reduction="none")
        length = (labels != -100).sum()
        expected = expected + losses.sum() / length * (1 if weight is None else weight) / 2
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, dict(model.named_parameters())[name].grad, atol=1e-5, rtol=1e-3)


def test_captions_are_drawn_from_the_model_of_now(data):
    """Several of each image, as often different, and nothing that a special token stands for."""
    model = tiny_model()
    trainer = reward_trainer(select_modules(model, Recipe(lora_r=2)), data, CaptionReward(REFERENCES))
    examples = [example for example in trainer.train_dataset if example["kind"] == "caption"][:2]
    texts = trainer._write(examples)
    assert [len(group) for group in texts] == [5, 5] and len({text for group in texts for text in group}) > 5
    assert not any("<|im_end|>" in text or text != text.strip() for group in texts for text in group)
    assert trainer.model.training


def test_what_is_rewarded_becomes_likelier(data):
    """A model that is rewarded for one letter writes it more often."""
    torch.manual_seed(0)
    model = tiny_model()
    select_modules(model, Recipe(language_model="full"))

    def reward(texts, references, image):
        return [text.count("a") / max(1, len(text)) for text in texts]

    trainer = reward_trainer(model, data, reward)
    examples = [example for example in trainer.train_dataset if example["kind"] == "caption"][:2]
    batch = {"examples": examples * 4}
    counts = trainer.count_items([batch], torch.device("cpu"))
    optimizer = torch.optim.Adam([value for value in model.parameters() if value.requires_grad], 1e-2)
    for _ in range(12):
        trainer.training_step(model, batch, counts)
        optimizer.step()
        optimizer.zero_grad()
    rewards = trainer._noted[True]["reward"]
    assert sum(rewards[-16:]) > 1.5 * sum(rewards[:16]), rewards


def test_frozen_matrices_are_halved_for_writing_only():
    """What learns keeps its precision, and the frozen weights come back to the last bit, after an error too."""
    model = nn.Sequential(nn.Linear(3, 4).requires_grad_(False), nn.Linear(4, 2))
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(KeyboardInterrupt), _frozen_in_bfloat16(model, True):
        dtypes = [parameter.dtype for parameter in model.parameters()]
        raise KeyboardInterrupt
    assert dtypes == [torch.bfloat16, torch.float32, torch.float32, torch.float32]
    assert all(map(torch.equal, model.parameters(), before))


def test_a_model_that_is_spread_is_refused(data, monkeypatch):
    begin = ExampleTrainer.__init__

    def begin_spread(self, *args, **kwargs):
        begin(self, *args, **kwargs)
        self.is_fsdp_enabled = True

    monkeypatch.setattr(ExampleTrainer, "__init__", begin_spread)
    with pytest.raises(RSMoEError, match="spread by FSDP or DeepSpeed cannot: train without them"):
        reward_trainer(select_modules(tiny_model(), Recipe(lora_r=2)), data, CaptionReward(REFERENCES))


@pytest.mark.slow
def test_a_stage_by_reward(start, data, features, settings_file, tmp_path, monkeypatch):
    # What a model of random weights writes has no word of a reference.
    monkeypatch.setattr(CaptionReward, "__call__", lambda self, texts, *_: [text.count("a") for text in texts])
    output = train(
        "stage1",
        start,
        data,
        features,
        settings_file,
        tmp_path / "out",
        **BY_REWARD,
        reward_samples=2,
        eval_examples=4,
    )
    assert moved(start, output) == {"qformer", "projection", "language_model"}
    log = json.loads((output / "trainer_state.json").read_text())["log_history"]
    assert all(math.isfinite(entry["reward"]) and entry["reward"] >= 0 for entry in log if "reward" in entry)
    assert sum("reward" in entry for entry in log) >= 4 and any("eval_loss_caption" in entry for entry in log)
    assert json.loads((output / "training.json").read_text())["recipe"]["caption_loss"] == "reward"
    assert read_facts(output).steps[-1].name == "stage 1, by reward"


def test_one_caption_cannot_be_compared():
    with pytest.raises(RSMoEError, match="reward_samples is 1; expected 2 or more, which are compared"):
        Recipe(reward_samples=1)
