"""Cold starts and peak memory, each in a new process: `python -m modeling_rsmoe.bench.fresh FOLDER WHAT ...`.

Such a process prints one JSON object: seconds of importing, of loading and of the first caption, and its peak memory.
"""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors_rsmoe import RSMoEError
from .names import BASE_IMAGE, FULL_IMAGE, PROCESS
from .timing import Group, Seconds, now, phases_in_rounds


if TYPE_CHECKING:
    from .workbench import Workbench

# What a process does after loading, by its name in tables.
MEMORY = {
    BASE_IMAGE: "base:1",
    FULL_IMAGE: "full:1",
    "full, 8 images": "full:8",
    "full, 32 images": "full:32",
    "an LLM each for router and experts": "merged:1",
    "InstructBLIP, 1 image": "instructblip:1",
    "SmolVLM-256M, 1 tile": "SmolVLM-256M:1",
    "SmolVLM-500M, 1 tile": "SmolVLM-500M:1",
}
COLD = (BASE_IMAGE, FULL_IMAGE)
COLD_ROUNDS = 3  # at most
PHASES = ("import", "load", "first caption")
HELP = "rsmoe --help"


def cold(bench: "Workbench") -> tuple[list[Group], dict[str, Any]]:
    """Phases of a first caption in a fresh process, and what `rsmoe --help` takes."""
    variants: dict[str, Callable[[], dict[str, Seconds]]] = {HELP: _help}
    variants |= {name: partial(_caption, bench, MEMORY[name]) for name in COLD}
    times = phases_in_rounds(variants, min(bench.repeats, COLD_ROUNDS), bench.progress)
    return [
        {"key": f"cold: {name}", "title": f"cold start: {name}", "base": PROCESS, "times": phases}
        for name, phases in times.items()
    ], {}


def _help() -> dict[str, Seconds]:
    return {PROCESS: _run([sys.executable, "-m", "modeling_rsmoe.cli", "--help"])[1]}


def _caption(bench: "Workbench", what: str) -> dict[str, Seconds]:
    printed, seconds = in_a_fresh_process(bench, what)
    return {**{phase: printed[phase] for phase in PHASES}, PROCESS: seconds}


def memory(bench: "Workbench") -> tuple[list[Group], dict[str, Any]]:
    """Peak bytes of each process, and of one that has only imported what all of them need."""
    peaks: dict[str, int] = {}
    for index, (name, what) in enumerate(MEMORY.items()):
        bench.progress(name, index, len(MEMORY))
        printed, _ = in_a_fresh_process(bench, what)
        peaks.setdefault("Python and libraries", printed["imported_bytes"])
        peaks[name] = printed["peak_bytes"]
    return [], {"peak_bytes": peaks}


def in_a_fresh_process(bench: "Workbench", what: str) -> tuple[dict[str, Any], Seconds]:
    """What it printed; its seconds by the clock and of the processor."""
    arguments = [str(bench.folder), what, str(bench.tokens), str(bench.threads)]
    output, seconds = _run([sys.executable, "-m", "modeling_rsmoe.bench.fresh", *arguments])
    return json.loads(output.splitlines()[-1]), seconds


def _run(command: list[str]) -> tuple[str, Seconds]:
    before = _of_children()
    environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        reason = (done.stderr.strip() or "no reason given").splitlines()[-1]
        raise RSMoEError(f"a process of the bench failed ({reason}): {' '.join(command)}")
    return done.stdout, _of_children() - before


def _of_children() -> Seconds:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return np.array([time.perf_counter(), usage.ru_utime + usage.ru_stime])


# ---- in the fresh process


def main(folder: str, what: str, tokens: int, threads: int) -> None:
    """Load the checkpoint, write captions, and print what both took."""
    clocks = [now()]
    import torch

    from .. import RSMoEForConditionalGeneration, RSMoEProcessor  # noqa: F401  # what `load` needs
    from ..inference.checkpoint import load
    from ..utils.provenance import peak_memory
    from .smolvlm import SIZES, smolvlm, smolvlm_caption
    from .workbench import Workbench

    torch.set_num_threads(threads)
    imported = peak_memory()
    clocks.append(now())
    kind, _, images = what.partition(":")
    if kind == "instructblip":
        caption = _instructblip(folder, tokens)
    elif kind in SIZES:
        caption = smolvlm_caption(smolvlm(kind, torch.float32), int(images), tokens)
    else:
        checkpoint = load(folder, device="cpu")
        bench = Workbench(checkpoint.model, checkpoint.processor, Path(folder), tokens)
        kinds: dict[str, Callable[[int], Callable[[], Any]]]
        kinds = {"base": bench.base, "full": bench.full, "merged": partial(_merged, bench)}
        caption = kinds[kind](int(images))
    clocks.append(now())
    with torch.no_grad():
        caption()
    clocks.append(now())
    seconds = {phase: (after - before).tolist() for phase, before, after in zip(PHASES, clocks, clocks[1:])}
    print(json.dumps({**seconds, "imported_bytes": imported, "peak_bytes": peak_memory()}))


def _merged(bench: "Workbench", images: int) -> Callable[[], Any]:
    """The expert texts by full LLMs, and as many tokens by one more, as large as the router's would be."""
    from ..sequences_rsmoe import by_expert
    from .peers import Merged
    from .workbench import expert_sequences

    router: Any = bench.model.plain_llm().generate
    experts = Merged(bench)

    def run() -> None:
        inputs = bench.inputs(images, expert_inputs=True)
        router(by_expert(inputs["router_input_ids"]).flatten(0, 1), **bench.lengths)
        experts.generate(expert_sequences(bench, inputs))

    return run


def _instructblip(folder: str, tokens: int) -> Callable[[], Any]:
    """One caption by InstructBLIP, without our weights in memory."""
    import torch

    from .. import RSMoEConfig, RSMoEProcessor
    from ..prompting_rsmoe import DEFAULT_INSTRUCTION
    from .instructblip import INPUTS, instructblip_like
    from .workbench import made_images

    processor: Any = RSMoEProcessor.from_pretrained(folder)
    inputs = processor(made_images(1), DEFAULT_INSTRUCTION, expert_inputs=False, return_tensors="pt")
    size = inputs["pixel_values"].shape[-1]
    model = instructblip_like(RSMoEConfig.from_pretrained(folder), size, torch.float32)
    lengths = {"min_new_tokens": tokens, "max_new_tokens": tokens, "do_sample": False}
    return partial(model.generate, **{name: inputs[name] for name in INPUTS}, **lengths)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
