"""Train both stages on a folder of your own images and captions, then caption one of the images.

    rsmoe assemble rs-moe-nano --untrained --output start
    python examples/train_own_images.py start IMAGES OUTPUT [--epochs 10] [--batch 16]

IMAGES is an ImageFolder of Hugging Face datasets: images and a metadata.jsonl with lines such as
{"file_name": "a.png", "text": "many boats are in a harbor ."}; or a data folder with captions.jsonl. Where it has no
splits, a tenth of the images is held out, near duplicates together. Stage 1 trains the encoder and the base LM,
stage 2 the router and the experts. The same command goes on after a stop; OUTPUT/stage2 is an ordinary checkpoint,
OUTPUT/*/loss.png its curves.
"""

import argparse
from pathlib import Path

from transformers import logging

from modeling_rsmoe import RSMoEError, RSMoEForConditionalGeneration, RSMoEProcessor
from modeling_rsmoe.data import splits
from modeling_rsmoe.data.aspects import ASPECTS, split_aspects
from modeling_rsmoe.data.folder import write_folder
from modeling_rsmoe.data.records import CAPTIONS_FILE, METADATA_FILE, read_captions
from modeling_rsmoe.training import Recipe, TrainArguments, train_stage


def with_splits(images: Path, copy: Path) -> Path:
    """A data folder with a train split: `images`, or a copy of an ImageFolder that has no splits."""
    if (images / CAPTIONS_FILE).is_file() or not (images / METADATA_FILE).is_file():
        return images
    records = read_captions(images)
    if any(record.split != "test" for record in records):  # that of lines which name none
        return images
    write_folder(splits.with_splits(records, val=0.1, test=0), images, copy, images.resolve().name)
    return copy


def train(checkpoint: Path, data: Path, output: Path, epochs: float, batch: int) -> Path:
    """Both stages; a finished one is not trained again. Returns the last checkpoint."""
    captions = read_captions(data)
    val = any(record.split == "val" for record in captions)
    # An aspect that no caption speaks of has nothing for its expert to learn.
    learned = [split_aspects(record.captions) for record in captions if record.split == "train"]
    experts = [name for name in ASPECTS if any(sentences[name] for sentences in learned)]
    report(f"experts: {', '.join(experts)}")
    recipes = {
        "stage1": Recipe.of("stage1", answer_share=0, eval_examples=64 if val else 0),
        "stage2": Recipe.of("stage2", question_share=0, expert_names=experts),
    }
    for stage, recipe in recipes.items():
        if not (output / stage / "training.json").is_file():
            arguments = TrainArguments(
                output_dir=str(output / stage),
                num_train_epochs=epochs,
                per_device_train_batch_size=batch,
                per_device_eval_batch_size=batch,
                warmup_steps=0.1,
                logging_steps=5,
            )
            features = output / "features"  # of the frozen ViT, computed once for both stages
            options = {"resume": True, "features": features, "progress": report}
            train_stage(stage, recipe, arguments, data, output / stage, checkpoint, **options)
        checkpoint = output / stage
    return checkpoint


def report(message: str, done: float = 0, total: float | None = None, unit: str = "") -> None:
    if not done:  # once for each step
        print(message)


def main(argv: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="the folder to start from")
    parser.add_argument("images", type=Path, help="your images and captions")
    parser.add_argument("output", type=Path, help="both checkpoints, features and logs go here")
    parser.add_argument("--epochs", type=float, default=10, help="passes over the captions in each stage (10)")
    parser.add_argument("--batch", type=int, default=16, help="examples of a step (16)")
    arguments = parser.parse_args(argv)
    logging.set_verbosity_error()  # it would list the weights of experts that are left out
    try:
        data = with_splits(arguments.images, arguments.output / "data")
        trained = train(arguments.checkpoint, data, arguments.output, arguments.epochs, arguments.batch)
    except RSMoEError as error:
        raise SystemExit(f"error: {error}") from error
    captions = read_captions(data)
    image = max(captions, key=lambda record: record.split).image  # a held-out one, where there is one
    model, processor = RSMoEForConditionalGeneration.from_pretrained(trained), RSMoEProcessor.from_pretrained(trained)
    inputs = processor(images=image, text="Describe the image.", return_tensors="pt")
    outputs = model.generate(**inputs, return_dict_in_generate=True)
    result = processor.post_process_generation(outputs)[0]
    print(f"{image}: {result['text']}\n{result['expert_texts']}")
    return result


if __name__ == "__main__":
    main()
