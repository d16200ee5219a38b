"""Merge one expert into the base LM and save it as a plain LLM, which loads without this package.

    python examples/merge_expert.py CHECKPOINT OUTPUT [--expert object] [--text "Which objects are at an airport?"]

OUTPUT is the folder of a causal LM of transformers (LlamaForCausalLM in nano) and its tokenizer, to go on with in
whatever reads those. It reads text only; images stay with RS-MoE. Shows that its logits are those of the expert, and
what the LLM answers.
"""

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from modeling_rsmoe import RSMoEError, RSMoEForConditionalGeneration, RSMoEProcessor
from modeling_rsmoe.prompting_rsmoe import Prompt


def main(argv: list[str] | None = None) -> float:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="an RS-MoE checkpoint")
    parser.add_argument("output", type=Path, help="a new folder")
    parser.add_argument("--expert", default="object")
    parser.add_argument("--text", default="Which objects are at an airport?")
    given = parser.parse_args(argv)
    if given.output.exists():
        parser.error(f"{given.output} exists; give a new folder")
    try:
        model = RSMoEForConditionalGeneration.from_pretrained(given.checkpoint, dtype=torch.float32)
        processor = RSMoEProcessor.from_pretrained(given.checkpoint)
        merged = model.merged_llm(given.expert)
    except (RSMoEError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    merged.save_pretrained(given.output)
    processor.llm_tokenizer().save_pretrained(given.output)  # with the chat template that the expert learned under

    llm, tokenizer = AutoModelForCausalLM.from_pretrained(given.output), AutoTokenizer.from_pretrained(given.output)
    chat = [{"role": "user", "content": Prompt.for_expert(given.expert, given.text, "").text}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    with torch.no_grad():  # the expert's token in the text selects its weights
        ours, theirs = model(**inputs).logits, llm(**inputs).logits
    difference = ((ours - theirs).abs().max() / ours.abs().max()).item()
    print(f"{type(llm).__name__} in {given.output}; its logits differ by {difference:.1e} of the largest one")
    answer = llm.generate(**inputs, max_new_tokens=32, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    print(f"{given.text} {tokenizer.decode(answer, skip_special_tokens=True).strip()}")
    return difference


if __name__ == "__main__":
    main()
