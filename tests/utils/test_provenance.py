"""Hashes change with what they hash, and with nothing else."""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from modeling_rsmoe.data.records import CaptionRecord, records_sha256
from modeling_rsmoe.errors_rsmoe import RSMoEError
from modeling_rsmoe.utils import provenance


@pytest.fixture
def records(tmp_path: Path) -> list[CaptionRecord]:
    names = ["a.png", "b.png"]
    for name in names:
        (tmp_path / name).write_bytes(name.encode())
    return [CaptionRecord(tmp_path / name, "RSICD", "val", (f"Image {name} .",)) for name in names]


def test_checkpoint_hash_is_that_of_sha256sum(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / ".cache").mkdir()
    for name in (
        "model.safetensors",
        "config.json",
        "sub/vocab.txt",
        "README.md",
        "stac_item.json",
        ".cache/other.json",
    ):
        (tmp_path / name).write_text(name)
    listed = ["config.json", "model.safetensors", "sub/vocab.txt"]
    lines = "".join(f"{hashlib.sha256(name.encode()).hexdigest()}  {name}\n" for name in listed)
    assert provenance.folder_sha256(tmp_path) == hashlib.sha256(lines.encode()).hexdigest()

    before = provenance.folder_sha256(tmp_path)
    (tmp_path / "README.md").write_text("other scores")
    (tmp_path / "training.json").write_text("how it came about")
    assert provenance.folder_sha256(tmp_path) == before
    (tmp_path / "sub" / "vocab.txt").rename(tmp_path / "vocab.txt")
    assert provenance.folder_sha256(tmp_path) != before


def test_a_folder_without_a_checkpoint_has_no_hash(tmp_path: Path) -> None:
    with pytest.raises(RSMoEError, match="no file of a checkpoint"):
        provenance.folder_sha256(tmp_path)


def test_weights_hash_is_of_names_and_values_whatever_the_files(tmp_path: Path) -> None:
    weights = {"a": torch.ones(2, 3), "b": torch.zeros(2, dtype=torch.float16)}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    before = provenance.weights_sha256(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert provenance.weights_sha256(tmp_path) == before
    (tmp_path / "model.safetensors").unlink()
    for number, name in enumerate("ba"):
        save_file({name: weights[name]}, tmp_path / f"model-{number}.safetensors")
    assert provenance.weights_sha256(tmp_path) == before
    for other in ({"c": weights["a"]}, {"a": 2 * weights["a"]}, {"a": weights["a"].T.contiguous()}):
        save_file(other, tmp_path / "model-1.safetensors")
        assert provenance.weights_sha256(tmp_path) != before
    (tmp_path / "model-1.safetensors").write_bytes(b"no tensors")
    with pytest.raises(RSMoEError, match="cannot be read as safetensors"):
        provenance.weights_sha256(tmp_path)
    with pytest.raises(RSMoEError, match="no weights"):
        provenance.weights_sha256(tmp_path / "none")


def test_data_hash_changes_with_texts_names_and_pixels_only(tmp_path: Path, records: list[CaptionRecord]) -> None:
    before = records_sha256(records, tmp_path)
    assert records_sha256(records[::-1], tmp_path) == before
    assert records_sha256(records[:1], tmp_path) != before
    other = CaptionRecord(records[0].image, "RSICD", "val", ("Another .",))
    assert records_sha256([other, records[1]], tmp_path) != before

    copied = tmp_path / "copy"
    copied.mkdir()
    for record in records:
        shutil.copy(record.image, copied)
    there = [CaptionRecord(copied / record.image.name, "RSICD", "val", record.captions) for record in records]
    assert records_sha256(there, copied) == before
    there[1].image.write_bytes(b"other pixels")
    assert records_sha256(there, copied) != before


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_is_of_the_process_itself():
    """Not that of the large process that started it, as getrusage says."""
    code = "from modeling_rsmoe.utils.provenance import peak_memory; print(peak_memory())"
    held = bytearray(300 << 20)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0 < int(done.stdout) < len(held) < provenance.peak_memory()
