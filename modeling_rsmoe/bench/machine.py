"""The machine that is measured: its processor, and how fast it reads memory."""

import os
import platform
import time
from pathlib import Path
from typing import Any


# What of a processor's features decides how fast small and large matrix products are.
FEATURES: tuple[str, ...] = (
    "avx2",
    "fma",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx_vnni",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
)
FEATURES += ("asimddp", "i8mm", "bf16", "sve")  # ARM's
READ_BYTES = 1 << 29  # far more than a processor's caches hold


def machine_facts(device: str) -> dict[str, Any]:
    """Model, features and threads of the processor; memory; the GPU where there is one."""
    import torch

    model, features = _processor()
    facts: dict[str, Any] = {
        "processor": model,
        "features": features,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "products": "MKL" if torch.backends.mkl.is_available() else "OpenBLAS or other",
        "environment": {
            name: os.environ[name] for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY") if name in os.environ
        },
    }
    if hasattr(os, "sysconf"):
        facts["memory_bytes"] = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if torch.device(device).type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
    return facts


def _processor() -> tuple[str, list[str]]:
    """Name and features, from Linux's /proc; elsewhere the name that Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine(), []
    known = dict(reversed([[part.strip() for part in line.split(":", 1)] for line in lines if ":" in line]))
    own = set((known.get("flags") or known.get("Features") or "").split())
    name = known.get("model name") or known.get("CPU part") or platform.machine()
    return name, [feature for feature in FEATURES if feature in own]


class Reading:
    """Reads memory as fast as torch can: the sum of a large tensor, or its product with one vector.

    Both only read; which is faster depends on the libraries, and the faster one is the bandwidth.
    """

    def __init__(self, device: str = "cpu", size: int = READ_BYTES):
        import torch

        side = 4096
        self.matrix = torch.ones(size // (4 * side), side, device=device)  # [rows, side], float32
        self.vector = torch.ones(side, device=device)
        self.size = self.matrix.numel() * 4

    def sum(self) -> float:
        return self.matrix.sum().item()

    def product(self) -> float:
        return (self.matrix @ self.vector)[0].item()

    def bandwidth(self, repeats: int) -> dict[str, list[float]]:
        """Bytes a second of every run, by kind of reading."""
        found: dict[str, list[float]] = {"sum": [], "product": []}
        for turn in range(repeats + 1):
            for name, read in (("sum", self.sum), ("product", self.product)):
                began = time.perf_counter()
                read()
                seconds = time.perf_counter() - began
                if turn:
                    found[name].append(self.size / seconds)
        return found
