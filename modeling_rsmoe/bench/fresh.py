"""Cold starts and peak memory: in processes of their own, `python -m modeling_rsmoe.bench.fresh FOLDER WHAT ...`.

Such a process prints one JSON object: seconds of importing, of loading and of the first caption, and its peak memory.
"""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors_rsmoe import RSMoEError
from .timing import Group, Tell, Times


if TYPE_CHECKING:
    from .workbench import Workbench

# What a process does after loading: name in tables -> argument.
MEMORY = {
    "base LM alone, 1 image": "block:1",
    "full, 1 image": "full:1",
    "full, 8 images": "full:8",
    "full, 32 images": "full:32",
    "an LLM each for router and experts": "merged:1",
    "InstructBLIP, 1 image": "instructblip:1",
}
COLD_TURNS = 3  # at most
COLD = ("base LM alone, 1 image", "full, 1 image")
PARTS = ("import", "load", "first caption")
HELP = "rsmoe --help"


def cold(folder: Path, tokens: int, threads: int, repeats: int, tell: Tell) -> list[Group]:
    """Parts of a first caption in a fresh process, and what `rsmoe --help` takes."""
    found: dict[str, dict[str, Times]] = {name: {} for name in (HELP, *COLD)}
    runs = [(turn, name) for turn in range(min(repeats, COLD_TURNS) + 1) for name in found]
    for index, (turn, name) in enumerate(runs):
        tell(name, index / len(runs))
        for part, (wall, cpu) in (_help() if name == HELP else _caption(folder, name, tokens, threads)).items():
            times = found[name].setdefault(part, {"first": wall, "wall": [], "cpu": []})
            if turn:
                times["wall"].append(wall)
                times["cpu"].append(cpu)
    return [
        {"key": f"cold: {name}", "title": f"cold start: {name}", "base": "whole process", "times": times}
        for name, times in found.items()
    ]


def _help() -> dict[str, tuple[float, float]]:
    return {"whole process": _run([sys.executable, "-m", "modeling_rsmoe.cli", "--help"])[1]}


def _caption(folder: Path, name: str, tokens: int, threads: int) -> dict[str, tuple[float, float]]:
    said, whole = in_a_fresh_process(folder, MEMORY[name], tokens, threads)
    return {**{part: (said[part][0], said[part][1]) for part in PARTS}, "whole process": whole}


def memory(folder: Path, tokens: int, threads: int, tell: Tell) -> dict[str, Any]:
    """Peak bytes of each process, and of one that has only imported what all of them need."""
    peaks: dict[str, int] = {}
    for index, (name, what) in enumerate(MEMORY.items()):
        tell(name, index / len(MEMORY))
        said, _ = in_a_fresh_process(folder, what, tokens, threads)
        peaks.setdefault("Python and libraries", said["imported_bytes"])
        peaks[name] = said["peak_bytes"]
    return peaks


def in_a_fresh_process(
    folder: Path, what: str, tokens: int, threads: int
) -> tuple[dict[str, Any], tuple[float, float]]:
    """What it printed; its seconds by the clock and of the processor."""
    command = [sys.executable, "-m", "modeling_rsmoe.bench.fresh", str(folder), what, str(tokens), str(threads)]
    output, seconds = _run(command)
    return json.loads(output.splitlines()[-1]), seconds


def _run(command: list[str]) -> tuple[str, tuple[float, float]]:
    environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        reason = (done.stderr.strip() or "no reason given").splitlines()[-1]
        raise RSMoEError(f"a process of the bench failed ({reason}): {' '.join(command)}")
    return done.stdout, (wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


# ---- in the fresh process


def main(folder: str, what: str, tokens: int, threads: int) -> None:
    seconds: dict[str, tuple[float, float]] = {}

    def lap(part: str, began: tuple[float, float]) -> tuple[float, float]:
        now = (time.perf_counter(), time.process_time())
        seconds[part] = (now[0] - began[0], now[1] - began[1])
        return now

    now = (time.perf_counter(), time.process_time())
    import torch

    from .. import RSMoEForConditionalGeneration, RSMoEProcessor
    from ..data.provenance import peak_memory
    from .workbench import Workbench, made_pictures

    torch.set_num_threads(threads)
    imported = peak_memory()
    pictures = made_pictures(1)
    now = lap("import", now)
    kind, _, images = what.partition(":")
    processor = RSMoEProcessor.from_pretrained(folder)
    make = _instructblip(folder, processor, pictures, tokens) if kind == "instructblip" else None
    if make is None:
        model = RSMoEForConditionalGeneration.from_pretrained(folder).eval()
        make = _ours(Workbench(model, processor, Path(folder), tokens, pictures=pictures), kind, int(images))
    now = lap("load", now)
    make()
    lap("first caption", now)
    print(json.dumps({**seconds, "imported_bytes": imported, "peak_bytes": peak_memory()}))


def _ours(bench: "Workbench", kind: str, images: int) -> Callable[[], Any]:
    """One caption of each image: by the base LM, by the whole path, or the parts by full LLMs."""
    if kind != "merged":
        return {"block": bench.block, "full": bench.full}[kind](images)
    from .peers import Merged
    from .workbench import expert_rows

    router: Any = bench.model.plain_llm().generate  # as large as the router's own
    experts = Merged(bench)

    def run() -> None:
        inputs = bench.inputs(images, expert_inputs=True)
        router(inputs["router_input_ids"].flatten(0, 1), **bench.lengths)
        experts.generate(expert_rows(bench, inputs))

    return run


def _instructblip(folder: str, processor: Any, pictures: list[Any], tokens: int) -> Callable[[], Any]:
    """One caption by InstructBLIP, without our own weights in memory."""
    import torch

    from ..configuration_rsmoe import RSMoEConfig
    from ..prompting_rsmoe import DEFAULT_INSTRUCTION
    from .instructblip import INPUTS, instructblip_like

    inputs = processor(images=pictures, text=[DEFAULT_INSTRUCTION], expert_inputs=False, return_tensors="pt")
    given = {name: inputs[name] for name in INPUTS}
    model: Any = instructblip_like(RSMoEConfig.from_pretrained(folder), given["pixel_values"].shape[-1], torch.float32)
    return lambda: model.generate(**given, min_new_tokens=tokens, max_new_tokens=tokens, do_sample=False)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
