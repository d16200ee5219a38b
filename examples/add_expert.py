"""Add a fourth expert, `counting`, to a trained checkpoint and train it alone; all other weights stay bit for bit.

    python examples/add_expert.py CHECKPOINT DATA OUTPUT [--epochs 3] [--batch 16]

DATA is a folder with vqa.jsonl; the expert learns the train questions of question_type "count". It starts at the base LM. OUTPUT/trained is an ordinary checkpoint with four experts; one question is then asked with it.
"""

import argparse
import json
from pathlib import Path

from modeling_rsmoe import RSMoEError, RSMoEForConditionalGeneration, RSMoEProcessor
from modeling_rsmoe.data.records import QuestionRecord, read_questions
from modeling_rsmoe.prompting_rsmoe import Prompt, question_instruction
from modeling_rsmoe.training import Recipe, TrainArguments, train_stage2


NAME, INSTRUCTION = "counting", "How many objects of each kind are in this image?"


def with_expert(checkpoint: Path, output: Path) -> None:
    """Write the checkpoint with the further expert: a token, a row of embeddings for it, weights at the base LM."""
    processor = RSMoEProcessor.from_pretrained(checkpoint)
    model = RSMoEForConditionalGeneration.from_pretrained(checkpoint)
    model.add_expert(NAME, processor.add_expert(NAME, INSTRUCTION))
    model.save_pretrained(output, save_original_format=False)
    processor.save_pretrained(output)


def write_rows(questions: list[QuestionRecord], data: Path, file: Path) -> None:
    """Rows of the expert: it is asked the question as `generate` asks it with router_mode="none"."""
    with file.open("w", encoding="utf-8") as stream:
        for question in questions:
            row = {
                "image": question.image.relative_to(data.absolute()).as_posix(),
                "kind": "expert",
                "expert": NAME,
                "prompt": Prompt.for_expert(NAME, question_instruction(question.question), "").text,
                "completions": [question.answer],
            }
            stream.write(json.dumps(row) + "\n")


def main(argv: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="a trained checkpoint")
    parser.add_argument("data", type=Path, help="a data folder with vqa.jsonl")
    parser.add_argument("output", type=Path, help="a new folder")
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--batch", type=int, default=16)
    given = parser.parse_args(argv)
    start, rows, trained = given.output / "start", given.output / "rows.jsonl", given.output / "trained"
    if given.output.exists():
        parser.error(f"{given.output} exists; give a new folder")
    try:
        questions = [question for question in read_questions(given.data, "train") if question.question_type == "count"]
        if not questions:
            parser.error(f"{given.data} has no train question of question_type count")
        with_expert(given.checkpoint, start)
        write_rows(questions, given.data, rows)
        recipe = Recipe.of(
            "stage2",
            experts=[NAME],
            router="frozen",
            expert_start="checkpoint",  # where with_expert put it
            router_share=0,
            expert_share=0,  # the captions' rows are of the other experts
            extra_rows=str(rows),
            one_stage=True,  # the checkpoint is trained, though it may have come without its training.json
        )
        arguments = TrainArguments(
            output_dir=str(trained),
            num_train_epochs=given.epochs,
            per_device_train_batch_size=given.batch,
            warmup_steps=0.1,
        )
        train_stage2(recipe, arguments, given.data, trained, start, features=given.output / "features")
    except (RSMoEError, OSError) as error:
        raise SystemExit(f"error: {error}") from error

    model, processor = RSMoEForConditionalGeneration.from_pretrained(trained), RSMoEProcessor.from_pretrained(trained)
    asked = questions[0]
    inputs = processor(images=asked.image, text=question_instruction(asked.question), return_tensors="pt")
    # The router never learned to ask the new expert: each expert is asked the question itself.
    outputs = model.generate(**inputs, router_mode="none", return_dict_in_generate=True)
    result = processor.post_process_generation(outputs)[0]
    print(f"{asked.question} (answer: {asked.answer})")
    for name, part in result["parts"].items():
        print(f"{name}: {part}")
    return result


if __name__ == "__main__":
    main()
