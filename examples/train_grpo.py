"""Train captions by a reward with TRL's GRPO: what the model writes is scored, not what it should write.

    python examples/train_grpo.py CHECKPOINT DATASET OUTPUT [--steps 100] [--images 2] [--captions 4]

DATASET is what `datasets.load_dataset` takes, with the columns image and text: an ImageFolder (images and a
metadata.jsonl with lines such as {"file_name": "a.png", "text": "many boats are in a harbor ."}) or a name on the Hub.
The reward of a caption is the F1 of its words against the text's; any function of texts and columns will do. The base
LM's caption is rewarded (an instruction that begins with "<theme> " would train that expert's), and the Q-Former and
the projection learn. This package need not be there, but TRL must.
"""

import argparse
from pathlib import Path

import torch
from datasets import load_dataset
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl import GRPOConfig, GRPOTrainer


INSTRUCTION = "Describe the image."


def word_overlap(completions: list, text: list[str], **_) -> list[float]:
    """F1 of the words of each completion, a chat of one message, against those of its text."""
    rewards = []
    for (message,), reference in zip(completions, text):
        words, expected = set(message["content"].lower().split()), set(reference.lower().split())
        rewards.append(2 * len(words & expected) / max(1, len(words) + len(expected)))
    return rewards


def add_record(config, given: argparse.Namespace) -> None:
    """What was learned here, beside what was before: config.json keeps it at every save, for `rsmoe card`."""
    step = {
        "name": "GRPO",
        "learned": "queries, Q-Former, projection",
        "amount": f"{given.steps * given.images:,} images",
    }
    step |= {"batch": given.images * given.captions, "learning_rate": given.learning_rate}
    data = {"name": Path(given.dataset).name, "url": "", "learned": "captions (train)", "license": "not recorded"}
    known = getattr(config, "provenance", {})
    added = {"training": [*(known.get("training") or ()), step], "data": [*known.get("data", ()), data]}
    config.provenance = {**known, **added}


def main(argv: list[str] | None = None) -> list[dict]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="a folder or a name on the Hub")
    parser.add_argument("dataset", help="a folder or a name on the Hub; its split train is learned")
    parser.add_argument("output", type=Path, help="the new checkpoint")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--images", type=int, default=2, help="of each step")
    parser.add_argument("--captions", type=int, default=4, help="that are written of each image and compared")
    parser.add_argument("--max-tokens", type=int, default=32, help="of a caption")
    parser.add_argument("--learning-rate", type=float, default=1e-5)
    given = parser.parse_args(argv)
    if given.output.exists():
        parser.error(f"{given.output} exists; give a new folder")
    try:
        dataset = load_dataset(given.dataset, split="train")
        model = AutoModelForImageTextToText.from_pretrained(
            given.checkpoint, trust_remote_code=True, dtype=torch.float32
        )
        processor = AutoProcessor.from_pretrained(given.checkpoint, trust_remote_code=True)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if not {"image", "text"} <= set(dataset.column_names):
        parser.error(f"{given.dataset} has the columns {', '.join(dataset.column_names)}; image and text are needed")
    dataset = dataset.add_column("prompt", [[{"role": "user", "content": INSTRUCTION}]] * len(dataset))

    model.requires_grad_(False)  # else everything learns, the ViT too
    encoder = model.model.encoder
    for module in (encoder.qformer, encoder.query_tokens, encoder.projection):
        module.requires_grad_(True)
    processor.attach_to(model)  # GRPO drops the Q-Former's inputs: the model reads them out of the prompt
    arguments = GRPOConfig(
        output_dir=str(given.output),
        max_steps=given.steps,
        per_device_train_batch_size=given.images * given.captions,
        num_generations=given.captions,
        max_completion_length=given.max_tokens,
        learning_rate=given.learning_rate,
        bf16=torch.cuda.is_available(),
        logging_steps=1,
        save_strategy="no",  # a trainer's own checkpoints hold pickles
        report_to="none",
    )
    trainer = GRPOTrainer(model, word_overlap, arguments, train_dataset=dataset, processing_class=processor)
    trainer.train()
    add_record(model.config, given)
    model.save_pretrained(given.output, save_original_format=False)
    processor.save_pretrained(given.output)
    for line in trainer.state.log_history:
        if "reward" in line:
            print(f"step {line['step']}: reward {line['reward']:.3f}")
    return trainer.state.log_history


if __name__ == "__main__":
    main()
