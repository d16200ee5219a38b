"""Alignment: the queries learn to tell images apart by their captions."""

from pathlib import Path

import pytest
import torch

from modeling_rsmoe import RSMoEError
from modeling_rsmoe.data.records import CaptionRecord
from modeling_rsmoe.training import Recipe, modules
from modeling_rsmoe.training.alignment import (
    AlignmentModel,
    CaptionPairs,
    frequent_words,
    select_queries,
    standardize_vision,
)
from modeling_rsmoe.training.examples import read_data
from modeling_rsmoe.training.features import FeatureCache
from modeling_rsmoe.utils.images import read_images
from modeling_rsmoe.utils.progress import no_progress

from ..tiny import tiny_model, tiny_processor


def pairs_of(model, data, features, file) -> CaptionPairs:
    records = read_data(data, Recipe()).captions
    cache = FeatureCache(features, model, tiny_processor())
    cache.add([record.image for record in records])
    return CaptionPairs(model, tiny_processor(), records, cache, file, no_progress)


def test_it_learns(data, features, tmp_path):
    torch.manual_seed(0)
    model = tiny_model()
    pairs = pairs_of(model, data, features, tmp_path / "captions.safetensors")
    assert list(pairs.words) == ["airport", "forest", "harbor"]  # words of all images say nothing of one
    warmup = AlignmentModel(model.model.encoder, len(pairs.words))
    select_queries(model, Recipe(qformer="queries"))
    learning = modules.trained_parameters(warmup)
    assert {name.split(".")[0] for name in learning} == {"encoder", "words", "embedding"}
    assert not any("projection" in name or "vision" in name or "embeddings" in name for name in learning)
    optimizer = torch.optim.AdamW(learning.values(), 1e-2)
    batch = pairs.collate([{"record": i, "caption": 0} for i in range(8)])
    assert batch["words"].sum(1).tolist() == [1.0] * 8
    losses = []
    for _ in range(40):
        outcome = warmup(**batch)
        outcome["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append((outcome["loss_words"].item(), outcome["loss_contrast"].item()))
    assert losses[-1][0] < losses[0][0] / 2 and losses[-1][1] < losses[0][1] / 2


def test_pairs(data, features, tmp_path):
    pairs = pairs_of(tiny_model(), data, features, tmp_path / "captions.safetensors")
    examples = pairs.examples(20, seed=1)
    assert examples == pairs.examples(40, seed=1)[:20] != pairs.examples(20, seed=2)
    assert sorted(example["record"] for example in examples[:8]) == list(range(8))
    assert {example["caption"] for example in examples} > {0, 1}
    norms = pairs.collate(examples)["texts"].norm(dim=-1)
    torch.testing.assert_close(norms, torch.ones(20))
    other = pairs_of(tiny_model(seed=1), data, features, tmp_path / "captions.safetensors")
    assert torch.equal(other.embeddings, pairs.embeddings)  # kept: a resumed run embeds no caption again


def test_captions_that_say_the_same():
    records = [CaptionRecord(Path(f"{i}.png"), "Tiny", "train", ("a plane .",)) for i in range(3)]
    with pytest.raises(RSMoEError, match="captions that differ between images"):
        frequent_words(records)


def test_standardized_features(data):
    model, processor = tiny_model(), tiny_processor()
    images = read_data(data, Recipe()).images
    standardize_vision(model, processor, images, 0, no_progress)
    pixels = processor.image_processor(images=read_images(images), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        values = model.encode_image(pixels).flatten(0, 1)
    torch.testing.assert_close(values.mean(0), torch.zeros(16), atol=1e-4, rtol=0)
    torch.testing.assert_close(values.std(0, correction=0), torch.ones(16), atol=1e-4, rtol=0)
    model.model.encoder.vision_model.layernorm = torch.nn.Identity()
    with pytest.raises(RSMoEError, match="'dinov2' has no last norm"):
        standardize_vision(model, processor, images, 0, no_progress)
