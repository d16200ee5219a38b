"""Memory of weights is given back only where the file has the same numbers."""

import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from modeling_rsmoe.inference import pages
from modeling_rsmoe.inference.pages import has_private_pages, release_file_pages


linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux says which pages are of a file")
SIZE = 1 << 22


@pytest.fixture
def weight(tmp_path):
    """A weight as a checkpoint is loaded: its file is mapped."""
    save_file({"weight": torch.arange(SIZE, dtype=torch.float32)}, tmp_path / "model.safetensors")
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        return file.get_tensor("weight")


def num_present(tensor):
    return int((pages._page_flags(tensor) == pages._OF_FILE).sum())


@linux
def test_numbers_come_back_from_the_file(weight):
    total, size = weight.sum(), weight.nbytes // 4096
    assert num_present(weight) >= size and not has_private_pages(weight)
    release_file_pages(weight)
    assert num_present(weight) == 0 and not has_private_pages(weight)
    assert weight.sum() == total and torch.equal(weight[:3], torch.tensor([0.0, 1.0, 2.0]))
    assert num_present(weight) >= size


@linux
@pytest.mark.parametrize("place", [0, SIZE // 2, SIZE - 1])
def test_what_was_changed_stays(weight, place):
    weight.data[place] = -1
    assert has_private_pages(weight)
    release_file_pages(weight)
    assert weight[place] == -1


@pytest.mark.parametrize("read", [False, True])
def test_memory_of_no_file_stays(read):
    tensor = torch.zeros(SIZE) if read else torch.empty(SIZE)
    release_file_pages(tensor)  # of pages that nobody has touched too
    tensor.fill_(3)
    release_file_pages(tensor)
    assert has_private_pages(tensor) and (tensor == 3).all()


def test_where_pages_are_not_known(weight, monkeypatch):
    monkeypatch.setattr(pages, "_FLAGS", "/nowhere")
    assert has_private_pages(weight)
    release_file_pages(weight)
    assert weight[5] == 5


def test_of_no_numbers():
    release_file_pages(torch.empty(0))
    release_file_pages(torch.empty(3, device="meta"))
