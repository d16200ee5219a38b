"""The STAC item: valid by STAC's and the extension's own schemas, and true of the model."""

import json
from copy import deepcopy
from pathlib import Path

import numpy as np
import pystac
import pytest
from PIL import Image
from pystac.extensions.mlm import MLMExtension
from pystac.validation import validate_dict
from pystac.validation.stac_validator import JsonSchemaSTACValidator
from transformers import AutoImageProcessor

from modeling_rsmoe.hub.facts import read_facts
from modeling_rsmoe.hub.sources import HUB_CONFIGS
from modeling_rsmoe.hub.stac import stac_item

from ..tiny import tiny_model


SCHEMAS = Path(__file__).with_name("stac_schemas")
NANO = HUB_CONFIGS / "rs-moe-nano"


@pytest.fixture(scope="module")
def validator() -> JsonSchemaSTACValidator:
    """Has every schema at hand: one that it must fetch is an error without a network."""
    validator = JsonSchemaSTACValidator()
    for file in SCHEMAS.glob("*.json"):
        name, version = file.stem.rsplit("-v", 1)
        uri = f"https://stac-extensions.github.io/{name}/v{version}/schema.json"
        validator.schema_cache[uri] = json.loads(file.read_text())
    return validator


@pytest.fixture(scope="module")
def item() -> dict:
    return json.loads((NANO / "stac_item.json").read_text())


def test_nanos_item_is_valid(validator, item):
    assert [uri.rpartition("/v")[0].rpartition("/")[2] for uri in validate_dict(item, validator=validator)] == [
        "schemas.stacspec.org",
        "mlm",
    ]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("properties", "mlm:tasks"), ["visual-question-answering"]),
        (("properties", "mlm:input", 0, "value_scaling"), {"type": "z-score", "mean": 1.0, "stddev": 1.0}),
        (("properties", "mlm:input", 0, "resize_type"), "bicubic"),
        (("properties", "mlm:input", 0, "input", "data_type"), "float"),
        (("properties", "mlm:accelerator"), "none"),
        (("assets", "model", "roles"), ["data"]),
        (("properties", "datetime"), "yesterday"),
    ],
)
def test_the_schemas_do_refuse(validator, item, path, value):
    """The checks above can fail: each field that another spelling would spoil."""
    item = deepcopy(item)
    *parents, field = path
    entry = item
    for parent in parents:
        entry = entry[parent]
    entry[field] = value
    with pytest.raises(pystac.STACValidationError):
        validate_dict(item, validator=validator)


def test_pystac_reads_what_was_written(item):
    read = MLMExtension.ext(pystac.Item.from_dict(item))
    assert (read.mlm_name, read.architecture, read.framework) == ("rs-moe-nano", "RS-MoE", "Hugging Face")
    assert read.tasks == ["image-captioning", "generative"] and read.accelerator is None
    assert read.input[0].bands == ["red", "green", "blue"] and read.input[0].input.shape == [-1, 3, 224, 224]
    assert read.memory_size == 4 * read.total_parameters
    assert "HuggingFaceTB/SmolLM2-135M-Instruct" in read.pretrained_source
    assert read.hyperparameters.to_dict()["experts"] == ["theme", "object", "relation"]


def test_the_scaling_is_the_processors(item):
    """A reader who scales an image as the item says gets what the processor gives."""
    image = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    processor = AutoImageProcessor.from_pretrained(NANO, backend="pil")
    expected = processor(images=Image.fromarray(image), return_tensors="np")["pixel_values"][0]
    scales = item["properties"]["mlm:input"][0]["value_scaling"]
    found = [(image[..., i].astype(np.float64) - one["mean"]) / one["stddev"] for i, one in enumerate(scales)]
    assert np.allclose(np.stack(found), expected, atol=1e-5)


def test_of_a_checkpoint_of_ones_own(checkpoint, validator):
    item = stac_item(read_facts(checkpoint, trained=True))
    assert len(validate_dict(item, validator=validator)) == 2
    assert item["properties"]["mlm:total_parameters"] == sum(p.numel() for p in tiny_model().parameters())
    files = {asset["href"] for asset in item["assets"].values()} - {"./README.md"}
    assert all((checkpoint / href).is_file() for href in files)
