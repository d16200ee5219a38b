"""A checkpoint as a STAC Item with the Machine Learning Model extension (MLM 1.4): what catalogs of models read.

Everything in it is a fact of the checkpoint's folder (`facts`); nothing is measured here. Needs the extra `geo`.
"""

import json
from typing import Any

from ..generation_rsmoe import DEFAULTS
from ..utils.extras import require
from ..utils.provenance import STAC_ITEM
from .facts import Facts


# The whole world and all times: where and when images may be from, as the extension asks for models without bounds.
WORLD = (-180.0, -90.0, 180.0, 90.0)
START, END = "1900-01-01T00:00:00Z", "9999-12-31T23:59:59Z"
BANDS = ("red", "green", "blue")
TASKS = ["image-captioning", "generative"]  # of the extension's list, which has no question answering
WEIGHTS = "model.safetensors"
CODE, PROCESSING = "modeling_rsmoe.py", "processing_rsmoe.py"
PROCESSOR = "processing_rsmoe.RSMoEProcessor"


def stac_item(facts: Facts) -> dict[str, Any]:
    """The Item as JSON values. Assets lie beside it, in the checkpoint's folder.

    Raises:
        RSMoEError: pystac is not installed.
    """
    pystac = require("pystac", "geo")
    mlm = require("pystac.extensions.mlm", "geo")
    west, south, east, north = WORLD
    corners = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    item = pystac.Item(
        id=facts.name,
        geometry={"type": "Polygon", "coordinates": [corners]},
        bbox=list(WORLD),
        datetime=None,
        start_datetime=pystac.utils.str_to_datetime(START),
        end_datetime=pystac.utils.str_to_datetime(END),
        properties={
            "title": facts.name,
            "description": facts.texts.summary or "An RS-MoE: captions of aerial images, answers to questions.",
            "license": facts.texts.license or "other",
            "keywords": ["remote sensing", "image captioning", "visual question answering", "mixture of experts"],
            "bands": _bands(),
        },
        assets=_assets(pystac, mlm, facts),
    )
    extension = mlm.MLMExtension.ext(item, add_if_missing=True)
    extension.apply(
        name=facts.name,
        architecture="RS-MoE",
        tasks=TASKS,
        input=_inputs(mlm, facts),
        output=[_output(mlm)],
        framework="Hugging Face",
        framework_version=facts.config.transformers_version,
        memory_size=facts.parameters * facts.bytes_per_parameter,
        total_parameters=facts.parameters,
        pretrained=True,
        pretrained_source=", ".join(facts.base_models) or "unknown",
        accelerator=None,
        accelerator_constrained=False,
        hyperparameters=mlm.Hyperparameters.create(**_hyperparameters(facts)),
    )
    return item.to_dict(include_self_link=False, transform_hrefs=False)


def stac_text(facts: Facts) -> str:
    """The Item as the text of stac_item.json."""
    return json.dumps(stac_item(facts), indent=2, ensure_ascii=False) + "\n"


def _inputs(mlm: Any, facts: Facts) -> list[Any]:
    """The image as the processor gives it, and the text."""
    images = facts.image_processor
    channels = [images.image_mean, images.image_std]
    scales = [
        # (x * rescale_factor - mean) / std, said of the bytes of an image
        mlm.ValueScaling.create(
            mlm.ValueScalingType.Z_SCORE,
            mean=round(mean / images.rescale_factor, 4),
            stddev=round(std / images.rescale_factor, 4),
        )
        for mean, std in zip(*channels)
    ]
    image = mlm.ModelInput.create(
        name="pixel_values",
        description="One RGB image in 8 bits, of any size; it is resized, then scaled band by band.",
        bands=list(BANDS),
        input=mlm.InputStructure.create(
            [-1, len(BANDS), images.size["height"], images.size["width"]],
            ["batch", "channel", "height", "width"],
            "float32",
        ),
        resize_type=_resize(mlm, images.resample),
        pre_processing_function=_python(mlm, f"{PROCESSOR}.__call__"),
    )
    image.properties["value_scaling"] = [scale.to_dict() for scale in scales]  # a list in the schema, not in pystac
    text = mlm.ModelInput.create(
        name="input_ids",
        description='The instruction, such as "Describe the image." or a question, in English, with the marks of its image.',
        bands=[],
        input=mlm.InputStructure.create([-1, -1], ["batch", "token"], "int64"),
        pre_processing_function=_python(mlm, f"{PROCESSOR}.__call__"),
    )
    return [image, text]


def _output(mlm: Any) -> Any:
    return mlm.ModelOutput.create(
        name="sequences",
        tasks=TASKS,
        description="Tokens of the caption or answer; with return_dict_in_generate, of every prompt and part as well.",
        result=mlm.ResultStructure.create([-1, -1], ["batch", "token"], "int64"),
        post_processing_function=_python(mlm, f"{PROCESSOR}.post_process_generation"),
    )


def _resize(mlm: Any, resample: int) -> Any:
    """The extension's name for PIL's filter; None for a filter that it does not know."""
    kinds = mlm.ResizeType
    names = {0: kinds.INTERPOLATION_NEAREST, 1: kinds.INTERPOLATION_LANCZOS4, 2: kinds.INTERPOLATION_LINEAR}
    return (names | {3: kinds.INTERPOLATION_CUBIC}).get(int(resample))


def _python(mlm: Any, name: str) -> Any:
    return mlm.ProcessingExpression.create("python", name)


def _hyperparameters(facts: Facts) -> dict[str, Any]:
    config, generation = facts.config, facts.generation
    found = {
        "num_query_tokens": config.num_query_tokens,
        "experts": config.expert_names,
        "expert_type": config.expert_config.expert_type,
        "max_new_tokens": generation.max_new_tokens,
        **{name: getattr(generation, name, default) for name, default in DEFAULTS.items()},
    }
    if config.expert_config.expert_type == "lora":
        found |= {"expert_r": config.expert_config.r, "expert_lora_alpha": config.expert_config.lora_alpha}
    return {name: value for name, value in found.items() if value is not None}


def _assets(pystac: Any, mlm: Any, facts: Facts) -> dict[str, Any]:
    kinds = {
        "model": (WEIGHTS, "application/octet-stream; application=pytorch", ["mlm:model", "mlm:weights", "data"]),
        "config": ("config.json", pystac.MediaType.JSON, ["metadata"]),
        "processor": ("processor_config.json", pystac.MediaType.JSON, ["metadata"]),
        "source_code": (CODE, "text/x-python", ["mlm:source_code", "code"]),
        "processing_code": (PROCESSING, "text/x-python", ["mlm:source_code", "code"]),
        "model_card": ("README.md", "text/markdown", ["metadata", "overview"]),
    }
    titles = {
        "model": "Weights, as safetensors",
        "config": "Configuration of every part",
        "processor": "How images and texts become inputs",
        "source_code": "The model, for transformers' trust_remote_code",
        "processing_code": "The processor",
        "model_card": "Model card: use, training, scores, limits, licences",
    }
    assets = {
        name: pystac.Asset(f"./{file}", title=titles[name], media_type=kind, roles=roles)
        for name, (file, kind, roles) in kinds.items()
    }
    # STAC allows bands of an item only where an asset has some; the extension wants them in the item.
    assets["model"].extra_fields |= {"mlm:artifact_type": "safetensors.torch.save_file", "bands": _bands()}
    return assets


def _bands() -> list[dict[str, str]]:
    return [{"name": band} for band in BANDS]


__all__ = ["STAC_ITEM", "stac_item", "stac_text"]
