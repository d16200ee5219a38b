"""The encoder of a checkpoint, alone."""

import shutil
from pathlib import Path

import pytest
import torch

from modeling_rsmoe import RSMoEError, RSMoEForConditionalGeneration, RSMoEProcessor
from modeling_rsmoe.inference.encoder import encoder_sha256, load_encoder
from tests.tiny import tiny_model


def test_an_encoder_alone_is_that_of_the_whole_model(checkpoint, tmp_path):
    """Also out of several files, and of a checkpoint in half precision: by name, weight and hash."""
    folder = Path(shutil.copytree(checkpoint, tmp_path / "tiny"))
    processor = RSMoEProcessor.from_pretrained(folder)
    for kept in ({}, {"max_shard_size": "20KB"}, {"dtype": torch.bfloat16}):
        for file in folder.glob("model*"):
            file.unlink()
        tiny_model().to(kept.pop("dtype", torch.float32)).save_pretrained(folder, **kept)
        whole = RSMoEForConditionalGeneration.from_pretrained(folder, dtype="float32").model.encoder
        alone = load_encoder(folder)
        ours, theirs = alone.state_dict(), whole.state_dict()
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)
        assert encoder_sha256(alone, processor) == encoder_sha256(whole, processor)
    assert encoder_sha256(tiny_model(seed=1).model.encoder, processor) != encoder_sha256(whole, processor)


def test_no_encoder(checkpoint, tmp_path):
    folder = Path(shutil.copytree(checkpoint, tmp_path / "tiny"))
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RSMoEError, match="the encoder of .* cannot be loaded .*: assemble or download it again"):
        load_encoder(folder)
    weights.unlink()
    with pytest.raises(RSMoEError, match=r"has no \*.safetensors"):
        load_encoder(folder)
