"""A checkpoint as a STAC Item with the Machine Learning Model extension (MLM 1.4): what catalogs of models read.

The template stac_item.json says what holds for every RS-MoE; the rest are facts of the checkpoint's folder. Where and
when images may be from has no bounds: all of the Earth, all times.
"""

import json
from pathlib import Path
from typing import Any, cast

import torch

from ..generation_rsmoe import DEFAULTS
from .facts import Facts


TEMPLATE = Path(__file__).with_name("stac_item.json")
RESIZE = {0: "nearest", 1: "lanczos4", 2: "linear", 3: "cubic"}  # PIL's filters by the extension's names


def stac_item(facts: Facts) -> dict[str, Any]:
    """The Item as JSON values. Assets lie beside it, in the checkpoint's folder."""
    item = json.loads(TEMPLATE.read_text(encoding="utf-8"))
    item["id"] = facts.name
    properties = item["properties"]
    properties |= {
        "title": facts.name,
        "description": facts.texts.summary or properties["description"],
        "license": facts.texts.license or properties["license"],
        "mlm:name": facts.name,
        "mlm:framework_version": facts.config.transformers_version,
        "mlm:memory_size": facts.parameters * cast(torch.dtype, facts.config.dtype or torch.float32).itemsize,
        "mlm:total_parameters": facts.parameters,
        "mlm:pretrained_source": ", ".join(facts.base_models) or properties["mlm:pretrained_source"],
        "mlm:hyperparameters": _hyperparameters(facts),
    }
    images, image_input = facts.image_processor, properties["mlm:input"][0]
    image_input["input"]["shape"] = [-1, 3, images.size["height"], images.size["width"]]
    # (x * rescale_factor - mean) / std, in terms of the bytes of an image
    means = [round(mean / images.rescale_factor, 4) for mean in images.image_mean]
    stds = [round(std / images.rescale_factor, 4) for std in images.image_std]
    image_input["value_scaling"] = [{"type": "z-score", "mean": m, "stddev": std} for m, std in zip(means, stds)]
    resize = RESIZE.get(int(images.resample))
    image_input["resize_type"] = resize and f"interpolation-{resize}"
    return item


def stac_text(facts: Facts) -> str:
    """The Item as the text of stac_item.json."""
    return json.dumps(stac_item(facts), indent=2, ensure_ascii=False) + "\n"


def _hyperparameters(facts: Facts) -> dict[str, Any]:
    config, generation = facts.config, facts.generation
    values = {
        "num_query_tokens": config.num_query_tokens,
        "experts": config.expert_names,
        "expert_type": config.expert_config.expert_type,
        "max_new_tokens": generation.max_new_tokens,
        **{name: getattr(generation, name, default) for name, default in DEFAULTS.items()},
    }
    if config.expert_config.expert_type == "lora":
        values |= {"expert_r": config.expert_config.r, "expert_lora_alpha": config.expert_config.lora_alpha}
    return {name: value for name, value in values.items() if value is not None}
