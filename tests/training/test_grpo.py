"""TRL's GRPO and RLOO, which pass on a fixed list of inputs: the model reads the Q-Former's instruction by itself."""

import pytest
import torch
from datasets import Dataset
from PIL import Image
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from ..tiny import tiny_model, tiny_processor


INSTRUCTIONS = ["what is it?", "is there a road in it?", "<theme> which?"]


def tile(seed: int) -> Image.Image:
    pixels = torch.randint(0, 255, (40, 50, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def log_probs(model, input_ids, **inputs) -> torch.Tensor:
    """Of each token after the first (batch_size, sequence_length - 1)."""
    logits = model(input_ids=input_ids, **inputs).logits[:, :-1].log_softmax(-1)
    return logits.gather(-1, input_ids[:, 1:, None]).squeeze(-1)


@pytest.mark.parametrize(("trainer_class", "config_class"), [(GRPOTrainer, GRPOConfig), (RLOOTrainer, RLOOConfig)])
def test_what_is_trained_is_what_the_processor_says(trainer_class, config_class, tmp_path, monkeypatch):
    """At each step the trainer's log-probabilities are those with `qformer_input_ids` given, of the reference model
    too; an attached model also writes its completions under the instruction."""
    model, processor = tiny_model(), tiny_processor()
    dataset = Dataset.from_list(
        [
            {"prompt": [{"role": "user", "content": text}], "image": tile(seed), "caption": text}
            for seed, text in enumerate(INSTRUCTIONS)
        ]
    )
    processor.attach_to(model)
    arguments = config_class(
        output_dir=str(tmp_path),
        per_device_train_batch_size=6,
        num_generations=2,
        max_completion_length=4,
        max_steps=2,
        learning_rate=1e-3,
        beta=0.1,
        bf16=False,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        gradient_checkpointing=False,
    )
    rewards: list[float] = []

    def letters(completions, caption, **_) -> list[float]:
        texts = [completion[0]["content"] for completion in completions]
        rewards.extend(len(set(text) & set(words)) for text, words in zip(texts, caption))
        return rewards[-len(texts) :]

    monkeypatch.setattr(f"{trainer_class.__module__}.create_model_from_path", lambda *_, **__: tiny_model())
    trainer = trainer_class(model, letters, arguments, train_dataset=dataset, processing_class=processor)
    processor.attach_to(trainer.ref_model)
    compared, others, measure = [], [], trainer._get_per_token_logps_and_entropies

    def compare(model, input_ids, attention_mask, logits_to_keep, *args, **kwargs):
        found = measure(model, input_ids, attention_mask, logits_to_keep, *args, **kwargs)
        texts = processor.tokenizer.batch_decode(input_ids)
        with torch.no_grad():
            given = [processor.read_rendered(text) for text in texts]
            inputs = {"attention_mask": attention_mask, "pixel_values": kwargs["pixel_values"]}
            written = attention_mask[:, -logits_to_keep:].bool()
            for readings, kept in ((given, compared), (["a?"] * len(texts), others)):
                expected = log_probs(model, input_ids, **inputs, **processor.tokenize_qformer(readings, "pt"))
                kept.append((found[0].detach() - expected[:, -logits_to_keep:])[written].abs().max().item())
        assert set(given) == {"what is it?", "is there a road in it?", "theme?"}
        return found

    monkeypatch.setattr(trainer, "_get_per_token_logps_and_entropies", compare)
    before = {name: value.clone() for name, value in model.named_parameters()}
    trainer.train()
    assert len(compared) >= 4 and len(rewards) == 12
    assert max(compared) < 1e-4 and min(others) > 1e-2  # under another instruction they are others
    assert any(not torch.equal(value, before[name]) for name, value in model.named_parameters())


def test_images_without_an_instruction_are_refused():
    """A model that no processor is attached to, such as the reference model that a trainer loads itself."""
    model, processor = tiny_model(), tiny_processor()
    inputs = processor(images=tile(0), text="what?", expert_inputs=False, return_tensors="pt")
    bare = {name: inputs[name] for name in ("input_ids", "attention_mask", "pixel_values")}
    for call in (model, model.generate):
        with pytest.raises(ValueError, match=r"without qformer_input_ids.*processor.attach_to\(model\)"):
            call(**bare)


def test_an_attached_model_reads_what_the_processor_gave():
    """Bit for bit, in forward and generate; the chat's last question, whatever was completed or padded."""
    model, processor = tiny_model(), tiny_processor()
    texts = [processor.render(text) for text in ("what?", "<object> how many are there in it?")]
    images = [tile(0), tile(1)]
    inputs = processor(images=images, text=texts, expert_inputs=False, return_tensors="pt")
    with torch.no_grad():
        logits, sequences = model(**inputs).logits, model.generate(**inputs)
        processor.attach_to(model)
        bare = processor(images=images, text=texts, return_tensors="pt")
        assert bare.keys() == {"input_ids", "attention_mask", "pixel_values"}
        assert torch.equal(model(**bare).logits, logits) and torch.equal(model.generate(**bare), sequences)
    read = processor.read_input_ids(sequences)
    assert torch.equal(read["qformer_input_ids"], inputs["qformer_input_ids"])
    turn = processor.tokenizer("<|im_start|>user\nanother?")["input_ids"]  # a model that writes a user's turn
    written = torch.cat([inputs["input_ids"], torch.tensor([turn, turn])], dim=1)
    assert torch.equal(processor.read_input_ids(written)["qformer_input_ids"], inputs["qformer_input_ids"])
    pairs = processor(images=[images], text="<image><image> both?", expert_inputs=False, return_tensors="pt")
    read = processor.read_input_ids(torch.cat([pairs["input_ids"]] * 2))
    assert read["qformer_input_ids"].shape[0] == 4
