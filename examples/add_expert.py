"""Add a fourth expert, `counting`, to a trained checkpoint and train it alone; all other weights stay bit for bit.

    python examples/add_expert.py CHECKPOINT DATA OUTPUT [--epochs 3] [--batch 16]

DATA is a folder with vqa.jsonl; the expert learns the train questions of question_type "count". It starts at the base
LM. OUTPUT/trained is an ordinary checkpoint with four experts, which then answers one question.
"""

import argparse
import json
from pathlib import Path

from modeling_rsmoe import RSMoEError, RSMoEForConditionalGeneration, RSMoEProcessor
from modeling_rsmoe.data.records import QuestionRecord, read_questions
from modeling_rsmoe.hub.records import carry_records
from modeling_rsmoe.prompting_rsmoe import Prompt, question_instruction
from modeling_rsmoe.training import Recipe, TrainArguments, train_stage


NAME, INSTRUCTION = "counting", "How many objects of each kind are in this image?"


def with_expert(checkpoint: Path, output: Path, name: str = NAME, instruction: str = INSTRUCTION) -> None:
    """Write the checkpoint with the new expert: a token, an embedding for it, weights at the base LM."""
    processor = RSMoEProcessor.from_pretrained(checkpoint)
    model = RSMoEForConditionalGeneration.from_pretrained(checkpoint)
    model.add_expert(name, processor.add_expert(name, instruction))
    model.save_pretrained(output, save_original_format=False)
    processor.save_pretrained(output)
    if checkpoint.is_dir():  # not of a name on the Hub; config.json keeps what matters of both
        carry_records(checkpoint, output, output.name)


def write_examples(questions: list[QuestionRecord], data: Path, file: Path) -> None:
    """Examples of the expert: its prompt is the question, as in `generate` with router_mode="none"."""
    with file.open("w", encoding="utf-8") as stream:
        for question in questions:
            prompt = Prompt.for_expert(NAME, question_instruction(question.question), INSTRUCTION)
            example = {
                "image": question.image.relative_to(data.absolute()).as_posix(),
                "kind": "expert",
                "expert": NAME,
                "prompt": prompt.text,
                "completions": [question.answer],
            }
            stream.write(json.dumps(example) + "\n")


def train_expert(start: Path, data: Path, examples: Path, output: Path, epochs: float = 3, batch: int = 16) -> None:
    """Train the new expert of `start` on the examples, and nothing else; image features are kept beside `output`."""
    recipe = Recipe.of(
        "stage2",
        experts=[NAME],
        router="frozen",
        expert_start="checkpoint",  # where with_expert put it
        router_share=0,
        expert_share=0,  # captions are for the other experts
        extra_examples=str(examples),
    )
    arguments = TrainArguments(
        output_dir=str(output),
        num_train_epochs=epochs,
        per_device_train_batch_size=batch,
        warmup_steps=0.1,
    )
    train_stage("stage2", recipe, arguments, data, output, start, features=output.parent / "features")


def main(argv: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="a trained checkpoint")
    parser.add_argument("data", type=Path, help="a data folder with vqa.jsonl")
    parser.add_argument("output", type=Path, help="a new folder")
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--batch", type=int, default=16)
    given = parser.parse_args(argv)
    start, trained = given.output / "start", given.output / "trained"
    extra_examples = given.output / "examples.jsonl"
    if given.output.exists():
        parser.error(f"{given.output} exists; give a new folder")
    try:
        questions = [question for question in read_questions(given.data, "train") if question.question_type == "count"]
        if not questions:
            parser.error(f"{given.data} has no train question of question_type count")
        with_expert(given.checkpoint, start)
        write_examples(questions, given.data, extra_examples)
        train_expert(start, given.data, extra_examples, trained, given.epochs, given.batch)
    except (RSMoEError, OSError) as error:
        raise SystemExit(f"error: {error}") from error

    model, processor = RSMoEForConditionalGeneration.from_pretrained(trained), RSMoEProcessor.from_pretrained(trained)
    question = questions[0]
    inputs = processor(images=question.image, text=question_instruction(question.question), return_tensors="pt")
    # The router never learned to write the new expert's prompts: the question itself is the prompt of each expert.
    outputs = model.generate(**inputs, router_mode="none", return_dict_in_generate=True)
    result = processor.post_process_generation(outputs)[0]
    print(f"{question.question} (answer: {question.answer})")
    for name, text in result["expert_texts"].items():
        print(f"{name}: {text}")
    return result


if __name__ == "__main__":
    main()
