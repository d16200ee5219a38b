"""RS-MoE for transformers: a mixture-of-experts vision-language model for remote-sensing captioning and question answering."""

import importlib
from typing import TYPE_CHECKING


__version__ = "0.1.0"

# Nothing heavy is imported until a name is asked for, so that `rsmoe --help` answers at once.
_HOME = {
    "RSMoEConfig": "configuration_rsmoe",
    "RSMoEEncoderConfig": "configuration_rsmoe",
    "RSMoEExpertConfig": "configuration_rsmoe",
    "RSMoERouterConfig": "configuration_rsmoe",
    "RSMoEError": "errors_rsmoe",
    "RSMoEExpert": "experts_rsmoe",
    "RSMoEForConditionalGeneration": "modeling_rsmoe",
    "RSMoEGenerateOutput": "generation_rsmoe",
    "RSMoEInstructionRouter": "router_rsmoe",
    "RSMoEModel": "modeling_rsmoe",
    "RSMoEProcessor": "processing_rsmoe",
    "RSMoEVisionLanguageEncoder": "encoder_rsmoe",
}

if TYPE_CHECKING:
    from .configuration_rsmoe import RSMoEConfig, RSMoEEncoderConfig, RSMoEExpertConfig, RSMoERouterConfig
    from .encoder_rsmoe import RSMoEVisionLanguageEncoder
    from .errors_rsmoe import RSMoEError
    from .experts_rsmoe import RSMoEExpert
    from .generation_rsmoe import RSMoEGenerateOutput
    from .modeling_rsmoe import RSMoEForConditionalGeneration, RSMoEModel
    from .processing_rsmoe import RSMoEProcessor
    from .router_rsmoe import RSMoEInstructionRouter


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    register()
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])


def register() -> None:
    """Make the Auto classes know RS-MoE, and saved folders carry its code. Done on the first use of any class here."""
    from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

    from .configuration_rsmoe import RSMoEConfig, RSMoEEncoderConfig, RSMoEExpertConfig, RSMoERouterConfig
    from .encoder_rsmoe import RSMoEVisionLanguageEncoder
    from .experts_rsmoe import RSMoEExpert
    from .modeling_rsmoe import RSMoEForConditionalGeneration, RSMoEModel
    from .processing_rsmoe import RSMoEProcessor
    from .router_rsmoe import RSMoEInstructionRouter

    bases: dict = {RSMoEConfig: RSMoEModel, RSMoEEncoderConfig: RSMoEVisionLanguageEncoder}
    bases |= {RSMoEExpertConfig: RSMoEExpert, RSMoERouterConfig: RSMoEInstructionRouter}
    for config, model in bases.items():
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModel.register(config, model, exist_ok=True)
        config.register_for_auto_class()
        model.register_for_auto_class("AutoModel")
    AutoModelForImageTextToText.register(RSMoEConfig, RSMoEForConditionalGeneration, exist_ok=True)
    RSMoEForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")
    AutoProcessor.register(RSMoEConfig, RSMoEProcessor, exist_ok=True)
    RSMoEProcessor.register_for_auto_class()


__all__ = [*_HOME, "register"]
