"""Adapting the ViT: what it learns from, that it learns, and that a killed run ends with the same weights."""

import json
import random
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from modeling_rsmoe import RSMoEError, RSMoEForConditionalGeneration, RSMoEProcessor
from modeling_rsmoe.hub.facts import read_facts
from modeling_rsmoe.training.encoder import AdaptationModel, train_encoder
from modeling_rsmoe.training.encoder_examples import (
    NOT_A_SCENE,
    ImageTargets,
    frequent_words,
    read_encoder_data,
    view,
    without_directions,
)
from modeling_rsmoe.training.export import export_trained
from modeling_rsmoe.training.features import FeatureCache
from modeling_rsmoe.training.settings import describe_settings, read_encoder_settings

from ..tiny import tiny_checkpoint, tiny_model, tiny_processor
from .runs import killed_at


TINY = {"image_size": 28, "per_device_train_batch_size": 4, "max_steps": 4, "save_steps": 2, "warmup_steps": 1}
CHANGES = [word for name, value in {**TINY, "logging_steps": 1}.items() for word in (f"--{name}", str(value))]


@pytest.fixture(scope="module")
def labelled(data, tmp_path_factory):
    """The tiny data folder; six of its images have object labels, and two more have a scene and no captions."""
    folder = tmp_path_factory.mktemp("labelled")
    shutil.copytree(data, folder, dirs_exist_ok=True)
    objects = [
        {"image": f"{i}.png", "dataset": "Tiny", "split": "train", "present": ["ship"] * (i % 2), "absent": ["tree"]}
        for i in range(6)
    ]
    scenes = []
    for i, split in ((20, "train"), (21, "train"), (22, "test")):
        Image.new("RGB", (16, 24), (i, 90, 10 * i)).save(folder / f"{i}.png")
        scenes.append({"image": f"{i}.png", "dataset": "TinyScenes", "split": split, "scene": f"scene {i}"})
    for name, rows in (("objects", objects), ("scenes", scenes)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def train(start, data, output, resume=False, changes=()):
    torch.set_num_threads(1)
    recipe, arguments = read_encoder_settings(None, output, [*CHANGES, *changes])
    return train_encoder(recipe, arguments, data, output, start, resume=resume)


def targets_of(folder, datasets=None) -> ImageTargets:
    return ImageTargets(read_encoder_data(folder, datasets), tiny_processor(), 28, seed=3)


def test_targets(labelled):
    targets = targets_of(labelled, ["Tiny", "TinyScenes", "TinyScenes"])
    names = [image.name for image in targets.place]
    assert sorted(names) == sorted([*(f"{i}.png" for i in range(8)), "20.png", "21.png"])  # no image of val or test
    assert len(targets.images) == 8 + 2 * 2
    airport, scene = names.index("0.png"), names.index("20.png")
    assert targets.words[airport, targets.word_names["airport"]] == pytest.approx(0.2)  # one caption of five
    assert targets.words[airport, targets.word_names["planes"]] == pytest.approx(0.6)
    assert targets.words[airport, targets.word_names["forest"]] == 0
    assert targets.words[scene].isnan().all() and targets.captions[scene].isnan().all()
    assert targets.object_names == ["ship", "tree"]
    assert targets.objects[names.index("1.png")].tolist() == [1, 0]
    assert targets.objects[airport].isnan().tolist() == [True, False] and targets.objects[scene].isnan().all()
    assert targets.scene_names == ["scene 20", "scene 21"]
    assert (targets.scenes[scene], targets.scenes[airport]) == (0, NOT_A_SCENE)
    vectors = targets.captions[~targets.captions[:, 0].isnan()]
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(8))
    same = targets.captions[[names.index(f"{i}.png") for i in (0, 3, 1)]]  # two airports and a forest
    assert same[0] @ same[1] > 0.99 > 0.5 > same[0] @ same[2]


def test_examples_and_views(labelled):
    targets = targets_of(labelled)
    examples = targets.examples(25)
    assert sorted(example["image"] for example in examples[:10]) == sorted(map(str, targets.images))
    assert examples == targets.examples(40)[:25]
    batch = targets.collate(examples[:3])
    assert batch["pixel_values"].shape == (3, 3, 28, 28) and batch["words"].shape[0] == 3
    for name, tensor in targets.collate(examples[:3]).items():
        assert torch.equal(tensor.nan_to_num(), batch[name].nan_to_num())
    # A picture whose corners differ is seen in all eight positions, never smaller than a crop of 0.8.
    corners = Image.fromarray(np.kron(np.array([[0, 80], [160, 240]], np.uint8), np.ones((20, 20), np.uint8)))
    seen = set()
    for seed in range(80):
        looked = view(corners, random.Random(seed))
        assert 32 <= looked.width == looked.height <= 40
        pixels = np.asarray(looked.convert("L"), int)
        seen.add(tuple(np.argsort([pixels[y, x] for y in (0, -1) for x in (0, -1)])))
    assert len(seen) == 8


def test_directions_are_not_learned():
    said = ["Planes on the left and upper right.", "Houses lie north of the sea, vertically.", "A bright tree."]
    left = " ".join(without_directions(said))
    assert " ".join(left.split()) == "Planes on the and . Houses lie of the sea, . A bright tree."


def test_words_of_most_captions_come_first(labelled):
    words = frequent_words(read_encoder_data(labelled, ["Tiny"]).captions)
    assert list(words)[0] == "planes" and set(words) > {"airport", "forest", "trees"}


def test_it_learns(labelled):
    torch.manual_seed(0)
    targets, vision = targets_of(labelled), tiny_model().model.encoder.vision_model
    model = AdaptationModel(vision, targets)
    model.measure(targets)
    batch = targets.collate(targets.examples(10))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 3e-3)
    losses = []
    for _ in range(200):
        outcome = model(**batch)
        outcome["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append({name: value.item() for name, value in outcome.items()})
    first, last = losses[0], losses[-1]
    assert first["loss"] == pytest.approx(sum(first[name] for name in first if name != "loss"), rel=1e-5)
    assert last["loss_scenes"] < first["loss_scenes"] / 3 and last["loss_captions"] < first["loss_captions"] / 3
    assert last["loss_words"] < first["loss_words"] and last["loss_objects"] < first["loss_objects"] / 2


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_weights(labelled, tmp_path):
    start = tiny_checkpoint(tmp_path / "start", reranker_rank=4, reranker_buckets=64)
    whole = train(start, labelled, tmp_path / "whole")
    broken = tmp_path / "broken"
    killed_at("encoder:3", ["train", "encoder", "--data", labelled, "--output", broken, "--model", start, *CHANGES])
    assert not (broken / "config.json").exists()
    train(start, labelled, broken, resume=True)
    for name in ("model.safetensors", ".training/learned.safetensors"):
        assert (broken / name).read_bytes() == (whole / name).read_bytes()

    # An ordinary checkpoint: the ViT is another, the reranker is gone, the rest is as it was.
    model, before = (RSMoEForConditionalGeneration.from_pretrained(folder) for folder in (whole, start))
    RSMoEProcessor.from_pretrained(whole)
    assert model.config.reranker_rank == 0 < before.config.reranker_rank
    old = before.state_dict()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, old[name])}
    vision = {name for name in old if ".vision_model." in name and not name.endswith("mask_token")}
    assert changed == vision
    assert (whole / "loss.png").stat().st_size and read_facts(whole).steps[-1].name == "encoder"

    # Kept features are of other weights, so they are not taken for the new ones'.
    caches = [FeatureCache(tmp_path / "features", some, tiny_processor()).folder for some in (model, before)]
    assert caches[0] != caches[1]

    file = export_trained([whole], tmp_path / "trained.safetensors")
    assert set(load_file(file)) == vision and not any("words" in name for name in load_file(file))


@pytest.mark.parametrize(
    "changes, problem",
    [
        (["--image_size", "30"], "image_size is 30; give a multiple of the ViT's patches of 14 pixels"),
        (["--image_size", "0"], "image_size is 0; expected 1 or more"),
        (["--datasets", "Mars"], 'unknown dataset "Mars" .* known: Tiny, TinyScenes'),
        (["--datasets", "TinyScenes"], "captions of two images or more"),
    ],
)
def test_settings_that_do_not_fit(start, labelled, tmp_path, changes, problem):
    with pytest.raises(RSMoEError, match=problem):
        train(start, labelled, tmp_path / "out", changes=changes)
    assert not (tmp_path / "out" / "config.json").exists()


def test_a_setting_that_is_unknown(start, labelled, tmp_path):
    with pytest.raises(RSMoEError, match="--colour"):
        train(start, labelled, tmp_path / "out", changes=["--colour", "blue"])


def test_settings_in_a_file(tmp_path):
    file = tmp_path / "training.yaml"
    file.write_text("encoder:\n  image_size: 224\n  max_steps: 7\n")
    recipe, arguments = read_encoder_settings(file, tmp_path, ["--max_steps", "9"])
    assert (recipe.image_size, recipe.head_learning_rate) == (224, 3e-4)
    assert (arguments.max_steps, arguments.learning_rate, arguments.per_device_train_batch_size) == (9, 5e-5, 32)
    file.write_text("encoder:\n  image_sise: 224\n")
    with pytest.raises(RSMoEError, match="encoder has no setting image_sise; see `rsmoe train encoder --settings`"):
        read_encoder_settings(file, tmp_path)
    assert "image_size (168)" in describe_settings("encoder") and "image_size" not in describe_settings("stage1")
    assert "max_steps (900): " in describe_settings("encoder") and "max_steps (-1): " in describe_settings("stage1")
