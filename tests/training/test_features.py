"""Features of images are computed once, and again only when the image or the encoder is another."""

import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_rsmoe import RSMoEError, RSMoEForConditionalGeneration, RSMoEProcessor
from modeling_rsmoe.inference.encoder import encoder_sha256
from modeling_rsmoe.training import features as module
from modeling_rsmoe.training.features import FeatureCache

from ..tiny import tiny_model, tiny_processor


@pytest.fixture
def images(data, tmp_path):
    """Copies of five images that a test may change."""
    for i in range(5):
        shutil.copyfile(data / f"{i}.png", tmp_path / f"{i}.png")
    return [tmp_path / f"{i}.png" for i in range(5)]


@pytest.fixture
def embedded(monkeypatch) -> list[str]:
    """Names of the images that the ViT has seen."""
    seen: list[str] = []
    embed = FeatureCache._embed

    def counted(self, images):
        seen.extend(image.name for image in images)
        return embed(self, images)

    monkeypatch.setattr(FeatureCache, "_embed", counted)
    return seen


def cache(tmp_path, model=None) -> FeatureCache:
    return FeatureCache(tmp_path / "features", model or tiny_model(), tiny_processor())


def test_features_are_those_of_the_encoder(images, tmp_path):
    made = cache(tmp_path)
    made.add(images)
    model, processor = tiny_model(), tiny_processor()
    pixels = processor(images=images[1:3], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = model.encode_image(pixels)
    found = made(images[1:3])
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=2e-3)  # kept in half precision
    size = (made.folder / "features.f16").stat().st_size
    assert size == 5 * expected[0].numel() * 2


def test_each_image_once(images, tmp_path, embedded):
    cache(tmp_path).add(images[:3])
    again = cache(tmp_path)
    again.add([*images, *images])
    assert embedded == [f"{i}.png" for i in range(5)]
    os.utime(images[0])  # touched, not changed
    shutil.copyfile(images[1], tmp_path / "same.png")  # under another name
    again = cache(tmp_path)
    again.add([*images, tmp_path / "same.png"])
    assert len(embedded) == 5 and torch.equal(again([tmp_path / "same.png"]), again([images[1]]))


def test_changed_image_and_changed_encoder_are_noticed(images, tmp_path, embedded):
    first = cache(tmp_path)
    first.add(images)
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(images[2])
    second = cache(tmp_path)
    second.add(images)
    assert embedded[5:] == ["2.png"]
    assert not torch.equal(second([images[2]]), first([images[2]])) and torch.equal(
        second(images[:2]), first(images[:2])
    )
    model = tiny_model()
    with torch.no_grad():
        model.model.encoder.vision_model.layernorm.bias += 1
    other = cache(tmp_path, model)
    other.add(images)
    assert len(embedded) == 11 and other.folder != first.folder


def test_a_killed_making_goes_on(images, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "VISION_BATCH", 1)
    monkeypatch.setattr(module, "INDEX_EVERY", 2)
    seen: list[str] = []
    embed = FeatureCache._embed

    def killed(self, some):
        if len(seen) == 3:
            raise KeyboardInterrupt  # two are entered, the third is written but not
        seen.append(some[0].name)
        return embed(self, some)

    monkeypatch.setattr(FeatureCache, "_embed", killed)
    with pytest.raises(KeyboardInterrupt):
        cache(tmp_path).add(images)
    seen.clear()
    monkeypatch.setattr(FeatureCache, "_embed", lambda self, some: seen.append(some[0].name) or embed(self, some))
    made = cache(tmp_path)
    made.add(images)
    assert seen == ["2.png", "3.png", "4.png"]
    whole = FeatureCache(tmp_path / "whole", tiny_model(), tiny_processor())
    whole.add(images)
    assert torch.equal(made(images), whole(images))


@pytest.mark.parametrize("damage", ["index", "records"])
def test_a_damaged_cache_is_made_anew(images, tmp_path, embedded, damage):
    made = cache(tmp_path)
    made.add(images)
    before = made(images)
    if damage == "index":
        (made.folder / "index.json").write_text("{")
    else:
        (made.folder / "features.f16").write_bytes(b"short")
    again = cache(tmp_path)
    again.add(images)
    assert len(embedded) == 10 and torch.equal(again(images), before)


def test_errors_say_what_to_do(images, tmp_path, monkeypatch):
    made = cache(tmp_path)
    made.add(images[:2])
    with pytest.raises(RSMoEError, match="no features of .*4.png.*; add the image"):
        made([images[4]])
    images[3].unlink()
    with pytest.raises(RSMoEError, match=r"3\.png cannot be read .*put it back"):
        made.add(images)
    images[3].write_bytes(b"no image")
    with pytest.raises(RSMoEError, match=r"3\.png"):
        made.add(images)
    made.add(images[:3])  # what is good stays good
    monkeypatch.setattr(
        module, "write_whole", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(RSMoEError, match="No space left on device.*free some space"):
        made.add([images[4]])


def test_the_hash_is_of_the_encoder_alone(start):
    model, processor = RSMoEForConditionalGeneration.from_pretrained(start), RSMoEProcessor.from_pretrained(start)
    digest = encoder_sha256(model.model.encoder, processor)
    assert digest == encoder_sha256(tiny_model().model.encoder, tiny_processor())  # saved and loaded
    with torch.no_grad():
        model.model.encoder.projection.weight += 1
    assert encoder_sha256(model.model.encoder, processor) == digest
    processor.image_processor.image_mean = [0.1, 0.1, 0.1]
    assert encoder_sha256(model.model.encoder, processor) != digest


def test_not_finite(images, tmp_path):
    model = tiny_model()
    with torch.no_grad():
        model.model.encoder.vision_model.layernorm.bias += 1e6
    with pytest.raises(RSMoEError, match="0.png are not finite in float16"):
        cache(tmp_path, model).add(images)
    assert not list((tmp_path / "features").rglob("index.json"))
