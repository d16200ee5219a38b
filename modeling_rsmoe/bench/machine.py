"""The machine that is measured: its processor, and how fast it reads memory."""

import os
import platform
from collections.abc import Callable
from typing import Any

import psutil
import torch

from ..inference.kernels import kernels_of
from ..utils.progress import Progress, no_progress
from .timing import in_rounds


# Features of a processor that decide how fast matrix products are: names in torch, or how they begin.
FEATURES = ("avx2", "fma3", "avx512_f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx", "bf16", "i8mm", "sve")
READ_BYTES = 1 << 29  # far more than a processor's caches hold


def machine_facts(device: str) -> dict[str, Any]:
    """Name, features, threads and kernels of the processor; memory; the GPU where there is one."""
    processor = torch.cpu.get_capabilities()
    facts: dict[str, Any] = {
        "processor": processor.get("cpu_name") or platform.processor() or platform.machine(),
        "features": [name for name, value in sorted(processor.items()) if value is True and name.startswith(FEATURES)],
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "products": "MKL" if torch.backends.mkl.is_available() else "OpenBLAS or other",
        "environment": {n: os.environ[n] for n in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY") if n in os.environ},
        "kernels": kernels_of()._asdict(),
        "memory_bytes": psutil.virtual_memory().total,
    }
    if torch.device(device).type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
    return facts


def memory_reads(device: str, size: int = READ_BYTES) -> dict[str, Callable[[], float]]:
    """Ways to read `size` bytes as fast as torch can, by name: each only reads; the faster one is the bandwidth."""
    matrix = torch.ones(size // (4 * 4096), 4096, device=device)  # float32
    vector = torch.ones(4096, device=device)
    return {"sum": lambda: matrix.sum().item(), "product": lambda: (matrix @ vector)[0].item()}


def read_rates(
    device: str, repeats: int, progress: Progress = no_progress, size: int = READ_BYTES
) -> dict[str, list[float]]:
    """Bytes a second of every run, by the way of reading."""
    times = in_rounds(memory_reads(device, size), repeats, progress)
    return {way: [size / seconds for seconds in of_way["wall"]] for way, of_way in times.items()}
