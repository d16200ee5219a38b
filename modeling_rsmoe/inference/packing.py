"""Copies of weights in half precision, as FBGEMM reads them: made once, and again when a weight has changed."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch.utils.weak import WeakIdKeyDictionary

from .pages import has_private_pages, release_file_pages


SAMPLE_EVERY = 997  # one number in so many is compared, since a change of `weight.data` gives it no new version

Weights = tuple[torch.Tensor, ...]  # matrices of the same width, one below the other


class _Seen(NamedTuple):
    """Which numbers of a weight were packed."""

    place: tuple[int, int]
    sample: torch.Tensor
    is_of_file: bool


class _Packed(NamedTuple):
    """The copy of some weights; None where one has numbers that half precision has not."""

    copy: Any
    seen: list[_Seen]


# The first of the weights -> how many they are -> _Packed: layers and models that share weights share their copy.
_PACKED = WeakIdKeyDictionary()


def pack(groups: Sequence[Weights]) -> list[Any]:
    """Copies of weights in half precision, of each group as one matrix. Those of weights that have not changed are not
    made again; as many as torch has threads are made at a time.

    Args:
        groups: float32 weights on the CPU.

    Returns:
        For each group what `kernels.half_product` takes; None where half precision does not have all its numbers.
    """
    different = {tuple(map(id, group)): group for group in groups}.values()
    new = [group for group in different if not _is_packed(group)]
    new.sort(key=lambda group: -sum(weight.numel() for weight in group))  # the largest is not left for the end
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for group, packed in zip(new, pool.map(_packed, new)):
            _PACKED.setdefault(group[0], {})[len(group)] = packed
    return [_PACKED[group[0]][len(group)].copy for group in groups]


def _is_packed(group: Weights) -> bool:
    known = _PACKED.get(group[0], {}).get(len(group))
    return known is not None and all(map(_is_as_seen, group, known.seen))


def _is_as_seen(weight: torch.Tensor, seen: _Seen) -> bool:
    if seen.place != _place(weight):
        return False
    # A change of `weight.data` gives it no new version. It is seen in the pages, else in some of the numbers.
    return not has_private_pages(weight) if seen.is_of_file else torch.equal(seen.sample, _sample(weight))


def _place(weight: torch.Tensor) -> tuple[int, int]:
    return weight.data_ptr(), 0 if weight.is_inference() else weight._version


def _sample(weight: torch.Tensor) -> torch.Tensor:
    return weight.detach().flatten()[::SAMPLE_EVERY]


def _packed(group: Weights) -> _Packed:
    seen = [_Seen(_place(w), _sample(w).clone(), not has_private_pages(w)) for w in group]
    whole = [weight.detach() for weight in group]
    # A few numbers tell of most weights that they do not fit.
    samples = [one.sample for one in seen]
    fits = all(torch.equal(some.half().float(), some) for some in (*samples, *whole))
    copy = None
    if fits:
        joined = whole[0] if len(whole) == 1 else torch.cat(whole)
        copy = torch.ops.quantized.linear_prepack_fp16(joined, None)
        for weight in whole:
            release_file_pages(weight)
    return _Packed(copy, seen)
