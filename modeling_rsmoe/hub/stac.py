"""A checkpoint as a STAC Item with the Machine Learning Model extension (MLM 1.4): what catalogs of models read.

Everything in it is a fact of the checkpoint's folder (`facts`); nothing is measured here. The Item is plain JSON, held
against the extension's own schemas by a test.
"""

import json
from typing import Any

from ..generation_rsmoe import DEFAULTS
from ..utils.provenance import STAC_ITEM
from .facts import Facts


EXTENSION = "https://stac-extensions.github.io/mlm/v1.4.0/schema.json"
# All of the Earth and all times: where and when images may be from, as the extension asks for models without bounds.
WEST, SOUTH, EAST, NORTH = -180.0, -90.0, 180.0, 90.0
CORNERS = [[WEST, SOUTH], [EAST, SOUTH], [EAST, NORTH], [WEST, NORTH], [WEST, SOUTH]]
START, END = "1900-01-01T00:00:00Z", "9999-12-31T23:59:59Z"
BANDS = ["red", "green", "blue"]
TASKS = ["image-captioning", "generative"]  # of the extension's list, which has no question answering
RESIZE = {0: "nearest", 1: "lanczos4", 2: "linear", 3: "cubic"}  # PIL's filters by the extension's names
TOKENS = {"shape": [-1, -1], "dim_order": ["batch", "token"], "data_type": "int64"}
JSON, CODE, TENSORS = "application/json", "text/x-python", "application/octet-stream; application=pytorch"
MAKES_INPUTS = {"format": "python", "expression": "processing_rsmoe.RSMoEProcessor.__call__"}
READS_OUTPUTS = {"format": "python", "expression": "processing_rsmoe.RSMoEProcessor.post_process_generation"}
INSTRUCTION = {
    "name": "input_ids",
    "bands": [],
    "input": TOKENS,
    "description": 'The instruction, such as "Describe the image." or a question, in English.',
    "pre_processing_function": MAKES_INPUTS,
}
OUTPUT = {
    "name": "sequences",
    "tasks": TASKS,
    "result": TOKENS,
    "description": "Tokens of the text; with return_dict_in_generate, also of every prompt and expert text.",
    "post_processing_function": READS_OUTPUTS,
}
# Name -> file, title, media type, roles.
ASSETS = {
    "model": (
        "model.safetensors",
        "Weights",
        "application/octet-stream; application=pytorch",
        "mlm:model mlm:weights",
    ),
    "config": ("config.json", "Configuration of every module", JSON, "metadata"),
    "processor": ("processor_config.json", "How images and texts become inputs", JSON, "metadata"),
    "source_code": ("modeling_rsmoe.py", "The model, for trust_remote_code", CODE, "mlm:source_code code"),
    "processing_code": ("processing_rsmoe.py", "The processor", CODE, "mlm:source_code code"),
    "model_card": ("README.md", "Use, training, scores, limits, licences", "text/markdown", "metadata overview"),
}


def stac_item(facts: Facts) -> dict[str, Any]:
    """The Item as JSON values. Assets lie beside it, in the checkpoint's folder."""
    bands = [{"name": band} for band in BANDS]
    assets: dict[str, dict[str, Any]] = {
        name: {"href": f"./{file}", "type": media_type, "title": title, "roles": roles.split()}
        for name, (file, title, media_type, roles) in ASSETS.items()
    }
    # STAC allows bands of an item only where an asset has some; the extension wants them in the item.
    assets["model"] |= {"mlm:artifact_type": "safetensors.torch.save_file", "bands": bands}
    properties = {
        "title": facts.name,
        "description": facts.texts.summary or "An RS-MoE: captions of aerial images, answers to questions.",
        "license": facts.texts.license or "other",
        "keywords": ["remote sensing", "image captioning", "visual question answering", "mixture of experts"],
        "bands": bands,
        "datetime": None,
        "start_datetime": START,
        "end_datetime": END,
    }
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": [EXTENSION],
        "id": facts.name,
        "geometry": {"type": "Polygon", "coordinates": [CORNERS]},
        "bbox": [WEST, SOUTH, EAST, NORTH],
        "properties": properties | {f"mlm:{name}": value for name, value in _model(facts).items()},
        "links": [],
        "assets": assets,
    }


def stac_text(facts: Facts) -> str:
    """The Item as the text of stac_item.json."""
    return json.dumps(stac_item(facts), indent=2, ensure_ascii=False) + "\n"


def _model(facts: Facts) -> dict[str, Any]:
    """The extension's fields, without their prefix."""
    return {
        "name": facts.name,
        "architecture": "RS-MoE",
        "tasks": TASKS,
        "input": [_image(facts.image_processor), INSTRUCTION],
        "output": [OUTPUT],
        "framework": "Hugging Face",
        "framework_version": facts.config.transformers_version,
        "memory_size": facts.weight_bytes,
        "total_parameters": facts.parameters,
        "pretrained": True,
        "pretrained_source": ", ".join(facts.base_models) or "unknown",
        "accelerator": None,
        "accelerator_constrained": False,
        "hyperparameters": _hyperparameters(facts),
    }


def _image(images: Any) -> dict[str, Any]:
    """The image as the processor's image processor gives it."""
    # (x * rescale_factor - mean) / std, in terms of the bytes of an image
    means = [round(mean / images.rescale_factor, 4) for mean in images.image_mean]
    stds = [round(std / images.rescale_factor, 4) for std in images.image_std]
    scaling = [{"type": "z-score", "mean": mean, "stddev": std} for mean, std in zip(means, stds)]
    resize = RESIZE.get(int(images.resample))
    return {
        "name": "pixel_values",
        "bands": BANDS,
        "input": {
            "shape": [-1, len(BANDS), images.size["height"], images.size["width"]],
            "dim_order": ["batch", "channel", "height", "width"],
            "data_type": "float32",
        },
        "description": "One RGB image in 8 bits, of any size; it is resized, then scaled band by band.",
        "value_scaling": scaling,
        "resize_type": resize and f"interpolation-{resize}",
        "pre_processing_function": MAKES_INPUTS,
    }


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


__all__ = ["STAC_ITEM", "stac_item", "stac_text"]
