"""A tiny checkpoint and a folder of images for all tests of collections."""

import functools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modeling_rsmoe.cli.collection import load_encoder_alone, load_model
from modeling_rsmoe.collection.describers import Captioner, CheckpointSource, FeatureEncoder
from modeling_rsmoe.inference import GenerationSettings
from modeling_rsmoe.inference.encoder import encoder_sha256
from modeling_rsmoe.utils.provenance import folder_sha256


NAMES = ["a.png", "b/1.png", "b/2.JPG", "bad.png", "c.tif", *(f"d/{number}.png" for number in range(6))]


@pytest.fixture(scope="package")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """11 images in several folders, one of them no image, and files that are not meant."""
    folder, generator = tmp_path_factory.mktemp("images") / "tiles", np.random.default_rng(0)
    for name in NAMES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (30, 40, 3), np.uint8)).save(folder / name)
    (folder / "bad.png").write_text("no image")
    (folder / "notes.md").write_text("not meant")
    (folder / ".hidden.png").write_bytes(b"")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "x.png").write_bytes(b"")
    return folder


@pytest.fixture
def captioner(checkpoint: Path) -> Captioner:
    """Not opened yet."""
    found = CheckpointSource(
        "tiny", "abc", folder_sha256(checkpoint), functools.partial(Path, str(checkpoint)), load_model
    )
    return Captioner(
        found, "Describe the image.", GenerationSettings(router_mode="template", fusion="concat", max_new_tokens=8)
    )


@pytest.fixture
def encoder(checkpoint: Path) -> FeatureEncoder:
    found = CheckpointSource(
        "tiny", "abc", folder_sha256(checkpoint), functools.partial(Path, str(checkpoint)), load_encoder_alone
    )
    return FeatureEncoder(found, encoder_sha256(*load_encoder_alone(checkpoint)))
