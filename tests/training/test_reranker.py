"""Fitting the reranker: of two captions it finds the one that fits what an image shows."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from modeling_rsmoe import RSMoEError, RSMoEForConditionalGeneration, RSMoEProcessor
from modeling_rsmoe.inference import Predictor
from modeling_rsmoe.prompting_rsmoe import DETAIL_INSTRUCTION
from modeling_rsmoe.reranker_rsmoe import RSMoEReranker, pool_image_features
from modeling_rsmoe.training.export import export_trained
from modeling_rsmoe.training.reranker import fit_reranker, train_reranker
from modeling_rsmoe.utils.images import read_image


SAID = ["a dark green forest near the sea", "many white planes at the airport"]


@pytest.fixture(scope="module")
def shades(tmp_path_factory):
    """Dark images with one caption, bright ones with the other."""
    folder = tmp_path_factory.mktemp("shades")
    lines = []
    for i in range(34):
        shade = np.random.default_rng(i).integers(0, 60, (28, 28, 3), dtype=np.uint8) + np.uint8(180 * (i % 2))
        Image.fromarray(shade).save(folder / f"{i}.png")
        entry = {"image": f"{i}.png", "dataset": "Tiny", "split": "val" if i >= 30 else "train"}
        lines.append(json.dumps({**entry, "captions": [f"{SAID[i % 2]} .", SAID[i % 2]]}))
    (folder / "captions.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def fitted(start, shades, features, tmp_path_factory):
    return train_reranker(
        shades, tmp_path_factory.mktemp("fitted") / "out", start, rank=6, buckets=512, features=features
    )


def test_unseen_images_get_the_caption_that_fits(fitted, shades):
    model, processor = (kind.from_pretrained(fitted) for kind in (RSMoEForConditionalGeneration, RSMoEProcessor))
    ids = processor.tokenizer([f" {text}." for text in SAID], add_special_tokens=False)["input_ids"]
    pictures = [read_image(shades / f"{i}.png") for i in range(30, 34)]
    pixels = processor.image_processor(images=pictures, return_tensors="pt")["pixel_values"]
    scores = model.model.reranker(model.encode_image(pixels), [ids] * 4)
    assert [int(of_image.argmax()) for of_image in scores] == [0, 1, 0, 1]
    # Likeness is a share of the n-grams: near all of the right caption's, and of the other's what they have in common.
    assert all(of_image.max() > 0.6 and of_image.min() < 0.1 for of_image in scores)


def test_all_else_stays_as_it_was(fitted, start):
    before, after = (RSMoEForConditionalGeneration.from_pretrained(f).state_dict() for f in (start, fitted))
    assert {name for name in after if name not in before} == {
        f"model.reranker.{name}"
        for name in ("image_projection.weight", "image_projection.bias", "ngram_embeddings.weight", "idf.weight")
    }
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    record = json.loads((fitted / "training.json").read_text())["reranker"]
    assert record["rank"] == 6 and record["data"]["captioned_images"] == 30 and record["start"]["name"] == start.name


@pytest.fixture(scope="module")
def labelled(shades, tmp_path_factory):
    """The same images with labels: dark ones have trees, bright ones have none; few labels say where a court is."""
    folder = shutil.copytree(shades, tmp_path_factory.mktemp("labelled") / "data")
    lines = []
    for i in range(34):
        present, absent = (["trees"], ["airplane"]) if i % 2 == 0 else (["airplane"], ["trees"])
        entry = {"image": f"{i}.png", "dataset": "Tiny", "split": "val" if i >= 30 else "train"}
        lines.append(json.dumps({**entry, "present": present + ["court"] * (i < 5), "absent": absent}))
    (folder / "objects.jsonl").write_text("\n".join(lines))
    return folder


def test_labels_teach_which_objects_are_there(labelled, start, features, tmp_path, fitted):
    output = train_reranker(labelled, tmp_path / "out", start, rank=6, buckets=512, features=features)
    model, processor = (kind.from_pretrained(output) for kind in (RSMoEForConditionalGeneration, RSMoEProcessor))
    reranker = model.model.reranker
    assert reranker.objects.names == ["airplane", "trees"]  # five images with a court are too few
    pictures = [read_image(labelled / f"{i}.png") for i in range(30, 34)]  # dark, bright, dark, bright
    pixels = processor.image_processor(images=pictures, return_tensors="pt")["pixel_values"]
    presence = reranker.objects(pool_image_features(model.encode_image(pixels)))
    assert (presence > 0.5).tolist() == [[False, True], [True, False]] * 2
    ids = processor.tokenizer(" Tall trees and two Airplanes", add_special_tokens=False)["input_ids"]
    assert reranker.objects.mentions(ids) == {"airplane", "trees"}
    learned = load_file(output / ".training" / "learned.safetensors")
    assert {"model.reranker.objects.pieces", "model.reranker.objects.projection.weight"} <= learned.keys()
    found = json.loads((output / "training.json").read_text())["reranker"]["objects"]
    assert found["names"] == ["airplane", "trees"] and found["labelled_images"] == 30
    # All else is as without labels.
    other = RSMoEForConditionalGeneration.from_pretrained(fitted).model.reranker
    assert other.objects is None
    assert all(torch.equal(value, reranker.state_dict()[name]) for name, value in other.state_dict().items())
    # The checkpoint writes paragraphs by it.
    (result,) = Predictor(model, processor).predict(pictures[:1], DETAIL_INSTRUCTION)
    assert result.sentences


def test_every_direction_kept_is_the_ridge_itself():
    """Against the plain regression, by hand."""
    torch.manual_seed(0)
    images, width, buckets = 40, 6, 6
    seen = torch.randn(images, width)
    captions = [[[int(i), int(i) + 1]] for i in torch.randint(0, 3, (images,))]
    reranker = RSMoEReranker(width // 3, 6, buckets)
    found = fit_reranker(reranker, seen, captions)
    ridge = float(max(found, key=lambda name: found[name]))
    targets = torch.zeros(images, buckets)
    for row, (text,) in enumerate(captions):
        for place, weight in zip(*reranker.weigh(text)):
            targets[row, place] += weight
    scaled = (seen - seen.mean(0)) / seen.std(0)
    weights = torch.linalg.solve(scaled.T @ scaled / images + ridge * torch.eye(width), scaled.T @ targets / images)
    expected = scaled @ weights + targets.mean(0)
    predicted = reranker.image_projection(seen) @ reranker.ngram_embeddings.weight.T
    torch.testing.assert_close(predicted, expected, atol=1e-4, rtol=1e-3)


def test_export_has_the_reranker(fitted, start, tmp_path):
    record = {"stage": "stage1", "recipe": {}, "finished": True}
    (fitted / "training.json").write_text(json.dumps(record))
    exported = load_file(export_trained([fitted], tmp_path / "trained.safetensors"))
    assert set(exported) == {
        f"model.reranker.{name}"
        for name in ("image_projection.weight", "image_projection.bias", "ngram_embeddings.weight", "idf.weight")
    }


def test_what_cannot_be_fitted_is_told_before_the_images_are_read(start, data, shades, features, tmp_path):
    with pytest.raises(RSMoEError, match="8 captioned images are too few to fit a reranker; give 20 or more"):
        train_reranker(data, tmp_path / "a", start, features=tmp_path)
    with pytest.raises(RSMoEError, match="reranker_rank is 256.*48 at most"):
        train_reranker(shades, tmp_path / "a", start, features=tmp_path)
    quantised = tmp_path / "quantised"
    shutil.copytree(start, quantised)
    config = json.loads((quantised / "config.json").read_text())
    (quantised / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "torchao"}}))
    with pytest.raises(RSMoEError, match="are quantised"):
        train_reranker(shades, tmp_path / "a", quantised, rank=6, features=tmp_path)
    shutil.rmtree(quantised)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").touch()
    with pytest.raises(RSMoEError, match="exists"):
        train_reranker(shades, tmp_path / "there", start, rank=6, features=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there"]
