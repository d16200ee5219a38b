"""Caption the images of a split and score them: BLEU-1..4, ROUGE-L and CIDEr x100, for the LLM block alone or the full
model. For the full model each expert's part is scored alone too, and all parts joined. `scene` is the share of captions that
name the scene which most references name; `constant` are the scores of one caption for all images.

    python examples/score_captions.py CHECKPOINT --data DATA --dataset RSICD --split val --reader llm|full --output FILE.jsonl

Captions go to FILE.jsonl as they are made; a second run goes on there. The scores are printed and written to FILE.json.
"""

import argparse
import json
import os
import time
from collections import Counter
from pathlib import Path

import torch
from tqdm import tqdm

from modeling_rsmoe import RSMoEForConditionalGeneration, RSMoEProcessor
from modeling_rsmoe.data.lexicon import mentions
from modeling_rsmoe.data.records import read_captions
from modeling_rsmoe.data.text import words
from modeling_rsmoe.evaluation.captions import caption_scores
from modeling_rsmoe.processing_rsmoe import DEFAULT_INSTRUCTION


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--dataset", default="RSICD")
    parser.add_argument("--split", default="val")
    parser.add_argument(
        "--reader", choices=["llm", "full"], default="full", help="the LLM block alone, or the whole path"
    )
    parser.add_argument("--router", choices=["generated", "template", "none"])
    parser.add_argument("--compose", choices=["concat", "llm"])
    parser.add_argument("--every", type=int, default=1, help="take every n-th image only")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--output", type=Path, required=True, help="captions, one JSON object a line")
    arguments = parser.parse_args(argv)
    data = arguments.data.resolve()
    records = read_captions(data, arguments.split, [arguments.dataset])[:: arguments.every]
    model = RSMoEForConditionalGeneration.from_pretrained(arguments.checkpoint, dtype=arguments.dtype).eval()
    processor = RSMoEProcessor.from_pretrained(arguments.checkpoint)
    constant = Counter(caption for record in records for caption in record.captions).most_common(1)[0][0]
    settings = {"router_mode": arguments.router, "composition": arguments.compose}

    done = {}
    if arguments.output.exists():
        done = {entry["image"]: entry for entry in map(json.loads, arguments.output.open())}
    todo = [record for record in records if name_of(record, data) not in done]
    began = time.time()
    with arguments.output.open("a") as file, torch.inference_mode():
        for start in tqdm(range(0, len(todo), arguments.batch), desc=f"{arguments.dataset} {arguments.split}"):
            some = todo[start : start + arguments.batch]
            inputs = processor(
                images=[record.image for record in some],
                text=[DEFAULT_INSTRUCTION] * len(some),
                expert_inputs=arguments.reader == "full",
                return_tensors="pt",
            )
            if arguments.reader == "full":
                outputs = model.generate(**inputs, **settings, return_dict_in_generate=True)
                results = processor.post_process_generation(outputs)
            else:
                new = model.generate(**inputs)[:, inputs["input_ids"].shape[1] :]
                results = [{"text": text.strip()} for text in processor.batch_decode(new, skip_special_tokens=True)]
            for record, result in zip(some, results):
                entry = {"image": name_of(record, data), "caption": result.pop("text"), **result}
                done[entry["image"]] = entry
                file.write(json.dumps(entry) + "\n")
            file.flush()
    references = {name_of(record, data): list(record.captions) for record in records}
    systems = {"caption": {name: done[name]["caption"] for name in references}}
    if arguments.reader == "full":
        for expert in processor.experts:
            systems[expert] = {name: done[name]["parts"][expert] for name in references}
        systems["parts joined"] = {name: " ".join(dict.fromkeys(done[name]["parts"].values())) for name in references}
    systems["constant"] = dict.fromkeys(references, constant)
    chosen = ("dataset", "split", "reader", "router", "compose")
    report = {
        **{name: value for name, value in vars(arguments).items() if name in chosen},
        "images": len(records),
        "seconds": round(time.time() - began, 1),
        "scores": {name: scores_of(references, captions) for name, captions in systems.items()},
    }
    temporary = arguments.output.with_suffix(".part")
    temporary.write_text(json.dumps(report, indent=1))
    os.replace(temporary, arguments.output.with_suffix(".json"))
    print(json.dumps(report, indent=1))


def scores_of(references: dict[str, list[str]], captions: dict[str, str]) -> dict[str, float]:
    named = [names_scene(references[name], caption) for name, caption in captions.items()]
    known = [share for share in named if share is not None]
    scores = {**caption_scores(references, captions), "scene": 100 * sum(known) / max(1, len(known))}
    return {name: round(value, 1) for name, value in scores.items()}


def names_scene(references: list[str], caption: str) -> bool | None:
    """Whether a caption names the scene word that most references name; None where they name none."""
    counts = Counter(scene for reference in references for scene in scenes_of(reference))
    most = {scene for scene, count in counts.items() if count == max(counts.values())}
    return bool(most & scenes_of(caption)) if most else None


def scenes_of(caption: str) -> set[str]:
    return {mention.noun.singular for mention in mentions(words(caption)) if mention.noun.kind != "thing"}


def name_of(record, data: Path) -> str:
    return str(record.image.relative_to(data))


if __name__ == "__main__":
    main()
