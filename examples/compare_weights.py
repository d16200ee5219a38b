"""Size on disk, memory, time to load and speed of checkpoints, each in fresh processes, in rounds, in one run.

    python examples/compare_weights.py MODEL[:DTYPE] ... [--repeats 1] [--tokens 24]
    python examples/compare_weights.py --sizes       # instead: weights of rs-moe-1b, -3b and -7b, counted

DTYPE as of `rsmoe caption --dtype`, by default what the folder has on this machine. The first is what the others are
compared with. Times are of the processor, on one thread, so that other work on the machine counts less; memory is the
most that the process held, pages of the weights' file among it. Ends with the table in Markdown.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from modeling_rsmoe import RSMoEConfig, RSMoEForConditionalGeneration, RSMoEProcessor  # noqa: F401  # what `load` needs
from modeling_rsmoe.hub.quantize import weight_bytes
from modeling_rsmoe.hub.sources import HUB_CONFIGS
from modeling_rsmoe.inference import Predictor
from modeling_rsmoe.inference.checkpoint import load
from modeling_rsmoe.utils.provenance import peak_memory
from modeling_rsmoe.utils.tables import markdown_table


def main(argv: list[str] | None = None) -> dict[str, dict[str, float]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL[:DTYPE]")
    parser.add_argument(
        "--sizes", action="store_true", help="count the weights of every size in every type, run nothing"
    )
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=24, help="new tokens of every prompt and text, exactly")
    parser.add_argument("--in-this-process", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.sizes:
        return show_sizes()
    if not arguments.models:
        parser.error("give one or more models, or --sizes")
    if arguments.in_this_process:
        measured = measure(arguments.models[0], arguments.tokens)
        print(json.dumps(measured))
        return {arguments.models[0]: measured}
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in arguments.models}
    # In rounds, so that a slow moment of the machine does not hit one alone.
    for name in tqdm(arguments.models * arguments.repeats):
        runs[name].append(in_a_fresh_process(name, arguments.tokens))
    medians = {}
    for name, of_model in runs.items():
        medians[name] = {key: statistics.median(run[key] for run in of_model) for key in of_model[0]}
    show(medians)
    return medians


def in_a_fresh_process(model: str, tokens: int) -> dict[str, float]:
    command = [sys.executable, __file__, model, "--tokens", str(tokens), "--in-this-process"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    result = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(result.stdout.splitlines()[-1])


def measure(model: str, tokens: int) -> dict[str, float]:
    """One load, one caption of the base LM and one of the full model, of a made image."""
    folder, _, dtype = model.partition(":")
    torch.set_num_threads(1)
    imported = peak_memory()
    began = time.process_time()
    checkpoint = load(folder, dtype or None, device="cpu")
    measured = {"imported": imported, "loading": time.process_time() - began}
    image = np.random.default_rng(0).integers(0, 255, (256, 256, 3), dtype=np.uint8)
    settings = {"min_new_tokens": tokens, "max_new_tokens": tokens, "router_max_new_tokens": tokens}
    for system in ("base", "full"):
        predictor = Predictor(checkpoint.model, checkpoint.processor, {**settings, "fusion": "concat"}, system)
        began = time.process_time()
        predictor.predict([image])
        measured[system] = time.process_time() - began
    weights = sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))
    return {"disk": weights, "memory": peak_memory(), **measured}


def show_sizes() -> dict[str, dict[str, float]]:
    """GB of weights; what 8 and 4 bits leave is in bfloat16, or stays in float32 as in every type."""
    dtypes = ("float32", "bfloat16", "int8", "nf4")
    sizes = {}
    for name in ("rs-moe-nano", "rs-moe-1b", "rs-moe-3b", "rs-moe-7b"):
        config = RSMoEConfig.from_pretrained(HUB_CONFIGS / name)
        sizes[name] = {dtype: weight_bytes(config, dtype) / 1e9 for dtype in dtypes}
    rows = [[name, *(f"{size:.2f}" for size in by_dtype.values())] for name, by_dtype in sizes.items()]
    print(markdown_table(["size", *dtypes], rows))
    return sizes


def show(medians: dict[str, dict[str, float]]) -> None:
    first = next(iter(medians.values()))
    rows = []
    for name, one in medians.items():
        sizes = [f"{one['disk'] / 1e6:.0f}", f"{one['memory'] / 1e6:.0f}", f"{one['loading']:.1f}"]
        times = [f"{one['base']:.1f}", f"{one['full']:.1f}", f"{one['full'] / first['full']:.2f}"]
        rows.append([Path(name).name, *sizes, *times])
    columns = ["weights, MB", "peak memory, MB", "loading, s", "base LM, s", "full, s", "full, ratio"]
    print(markdown_table(["checkpoint", *columns], rows))
    imported = statistics.median(one["imported"] for one in medians.values())
    print(f"\nOf the memory, {imported / 1e6:.0f} MB are Python and the libraries.")


if __name__ == "__main__":
    main()
