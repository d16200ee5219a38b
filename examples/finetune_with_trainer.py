"""Fine-tune a pulled checkpoint on images and texts with transformers' plain Trainer; this package need not be there.

    python examples/finetune_with_trainer.py CHECKPOINT DATASET OUTPUT [--epochs 3] [--batch 8] [--learning-rate 1e-4]

DATASET is what `datasets.load_dataset` takes, with the columns image and text: an ImageFolder (images and a
metadata.jsonl with lines such as {"file_name": "a.png", "text": "many boats are in a harbor ."}) or a name on the Hub.
The Q-Former and the projection learn, as in InstructBLIP; ViT, base LM, router and experts stay as they are, and all
of them read what the encoder learned. The result is saved, loaded again and captions an image.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from datasets import load_dataset
from transformers import AutoModelForImageTextToText, AutoProcessor, Trainer, TrainingArguments


INSTRUCTION = "Describe the image."


def collator(processor) -> Callable[[list[dict]], dict[str, torch.Tensor]]:
    """Chats of one image, the instruction and the text; labels stand on the text and its end token only."""

    def collate(examples: list[dict]) -> dict[str, torch.Tensor]:
        chats = []
        for example in examples:
            question = [{"type": "image", "image": example["image"]}, {"type": "text", "text": INSTRUCTION}]
            answer = [{"type": "text", "text": example["text"]}]
            chats.append([{"role": "user", "content": question}, {"role": "assistant", "content": answer}])
        inputs = processor.apply_chat_template(
            chats,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            return_assistant_tokens_mask=True,
            processor_kwargs={"expert_inputs": False},  # inputs of router and experts are for `generate`
        )
        answer_mask = inputs.pop("assistant_masks")
        return {**inputs, "labels": inputs["input_ids"].masked_fill(answer_mask == 0, -100)}

    return collate


def add_record(config, given: argparse.Namespace) -> None:
    """What was learned here, beside what was before: config.json keeps it at every save, for `rsmoe card`."""
    step = {"name": "fine-tuning", "learned": "queries, Q-Former, projection", "amount": f"{given.epochs:g} epochs"}
    step |= {"batch": given.batch, "learning_rate": given.learning_rate}
    data = {"name": Path(given.dataset).name, "url": "", "learned": "captions (train)", "license": "not recorded"}
    known = getattr(config, "provenance", {})
    added = {"training": [*(known.get("training") or ()), step], "data": [*known.get("data", ()), data]}
    config.provenance = {**known, **added}


def main(argv: list[str] | None = None) -> list[dict]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="a folder or a name on the Hub")
    parser.add_argument("dataset", help="a folder or a name on the Hub; its split train is learned")
    parser.add_argument("output", type=Path, help="the new checkpoint")
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
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

    model.requires_grad_(False)  # the model itself keeps a frozen ViT in evaluation mode
    encoder = model.model.encoder
    for module in (encoder.qformer, encoder.query_tokens, encoder.projection):
        module.requires_grad_(True)
    arguments = TrainingArguments(
        output_dir=str(given.output),
        num_train_epochs=given.epochs,
        per_device_train_batch_size=given.batch,
        learning_rate=given.learning_rate,
        logging_steps=10,
        remove_unused_columns=False,  # the collator reads image and text
        save_strategy="no",  # Trainer's own checkpoints hold pickles
        report_to="none",
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=dataset, data_collator=collator(processor))
    trainer.train()
    add_record(model.config, given)
    # Names as the model has them: saved under DINOv2's old names, a plain load_state_dict would miss them.
    model.save_pretrained(given.output, save_original_format=False)
    processor.save_pretrained(given.output)

    model = AutoModelForImageTextToText.from_pretrained(given.output, trust_remote_code=True)
    inputs = processor(images=dataset[0]["image"], text=INSTRUCTION, return_tensors="pt")
    result = processor.post_process_generation(model.generate(**inputs, return_dict_in_generate=True))[0]
    print(f"should be: {dataset[0]['text']}\nis: {result['text']}")
    return trainer.state.log_history


if __name__ == "__main__":
    main()
