"""How much one batched decode of all experts of all images saves, on the same weights, in one run.

    python examples/time_batching.py CHECKPOINT [--images 8] [--repeats 3] [--tokens 24]

Compares the full generation of N images (router and three experts of all of them in batches) with N single calls whose
router rows and experts run one after another. Both write the same number of tokens; the ratio of the medians is printed.
"""

import argparse
import statistics
import time

import numpy as np
import torch
from tqdm import tqdm

from modeling_rsmoe import RSMoEForConditionalGeneration, RSMoEProcessor
from modeling_rsmoe.processing_rsmoe import expert_prompt, router_prompt


def main(argv: list[str] | None = None) -> float:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=24, help="new tokens of every prompt and part, exactly")
    arguments = parser.parse_args(argv)
    model = RSMoEForConditionalGeneration.from_pretrained(arguments.checkpoint).eval()
    processor = RSMoEProcessor.from_pretrained(arguments.checkpoint)
    generator = np.random.default_rng(0)
    images = [generator.integers(0, 255, (256, 256, 3), dtype=np.uint8) for _ in range(arguments.images)]
    instruction = "Describe the image."
    lengths = {"min_new_tokens": arguments.tokens, "max_new_tokens": arguments.tokens}

    def batched():
        inputs = processor(images=images, text=[instruction] * len(images), return_tensors="pt")
        model.generate(
            **inputs, router_mode="generated", composition="concat", router_max_new_tokens=arguments.tokens, **lengths
        )

    def one_after_another():
        for image in images:
            for name in processor.experts:
                asked = write(image, router_prompt(name, instruction))
                write(image, expert_prompt(name, asked))

    def write(image, prompt: str) -> str:
        inputs = processor(images=image, text=processor.render(prompt), return_tensors="pt")
        new = model.generate(**inputs, **lengths)[:, inputs["input_ids"].shape[1] :]
        return processor.batch_decode(new, skip_special_tokens=True)[0].strip()

    seconds = {"batched": [], "one after another": []}
    with torch.inference_mode():
        for _ in tqdm(
            range(arguments.repeats), desc="repeats"
        ):  # in turn, so that a slow moment of the machine hits both
            for name, run in (("batched", batched), ("one after another", one_after_another)):
                began = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - began)
    for name, times in seconds.items():
        print(f"{name}: median {statistics.median(times):.2f} s (from {min(times):.2f} to {max(times):.2f})")
    ratio = statistics.median(seconds["batched"]) / statistics.median(seconds["one after another"])
    print(f"{arguments.images} images batched cost {ratio:.3f} of single calls one after another")
    return ratio


if __name__ == "__main__":
    main()
