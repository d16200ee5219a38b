"""Memory of weights that were read once and may never be read again.

transformers maps the safetensors of a checkpoint: a weight's memory are pages of the file, until one is written to.
Linux says which they are, and takes them back: what is read again comes from the file. Elsewhere nothing is known, and
nothing done.
"""

import ctypes
import mmap
import os

import numpy as np
import torch


_FLAGS = "/proc/self/pagemap"  # for each page of the process 8 bytes
_FLAG_BITS = 61  # where the flags begin: of a file, swapped, present
_ABSENT, _OF_FILE = 0b000, 0b101
_DONTNEED = 4  # of madvise(2)


def has_private_pages(tensor: torch.Tensor) -> bool:
    """Whether a page of a tensor's memory is no page of a file: its numbers may be others than the file's."""
    return _has_private(_page_flags(tensor))


def release_file_pages(tensor: torch.Tensor) -> None:
    """Give back a tensor's memory where all of it are pages of a file. No other thread may write to it meanwhile."""
    flags = _page_flags(tensor)
    if _has_private(flags) or _OF_FILE not in flags:
        return
    first, last = _pages(tensor)
    address, length = ctypes.c_void_p(first * mmap.PAGESIZE), ctypes.c_size_t((last - first) * mmap.PAGESIZE)
    ctypes.CDLL(None).madvise(address, length, _DONTNEED)


def _has_private(flags: np.ndarray) -> bool:
    return not len(flags) or not np.isin(flags, (_ABSENT, _OF_FILE)).all()


def _pages(tensor: torch.Tensor) -> tuple[int, int]:
    start = tensor.data_ptr()
    return start // mmap.PAGESIZE, -(-(start + tensor.nbytes) // mmap.PAGESIZE)


def _page_flags(tensor: torch.Tensor) -> np.ndarray:
    """Of each page; empty where they are not known."""
    first, last = _pages(tensor)
    try:
        with open(_FLAGS, "rb", buffering=0) as file:
            flags = os.pread(file.fileno(), (last - first) * 8, first * 8)
    except OSError:
        return np.empty(0, np.uint64)
    return np.frombuffer(flags, np.uint64) >> np.uint64(_FLAG_BITS)
