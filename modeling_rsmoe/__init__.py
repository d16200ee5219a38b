"""RS-MoE for transformers: a mixture-of-experts vision-language model for remote-sensing captioning and question answering."""

import importlib
from typing import TYPE_CHECKING


__version__ = "0.1.0"

if TYPE_CHECKING:
    from .configuration_rsmoe import *
    from .encoder_rsmoe import *
    from .errors_rsmoe import *
    from .experts_rsmoe import *
    from .generation_rsmoe import *
    from .modeling_rsmoe import *
    from .processing_rsmoe import *
    from .prompting_rsmoe import *
    from .router_rsmoe import *

# What each lists in its `__all__` is public. Imported when a name is asked for: `rsmoe --help` answers without
# transformers, whose import alone takes most of a second, and so does that of its `_LazyModule`.
_PUBLIC_MODULES = ["configuration", "encoder", "errors", "experts", "generation", "modeling", "processing"]
_PUBLIC_MODULES += ["prompting", "router"]


def __getattr__(name: str):
    if not name.startswith("_"):
        register()
        for module_name in _PUBLIC_MODULES:
            module = importlib.import_module(f".{module_name}_rsmoe", __name__)
            if name in module.__all__:
                return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def register() -> None:
    """Make the Auto classes know RS-MoE, and saved folders carry its code. Done on the first use of any class here."""
    from transformers import (
        AutoConfig,
        AutoModel,
        AutoModelForImageTextToText,
        AutoModelForMultimodalLM,
        AutoProcessor,
    )

    from .configuration_rsmoe import RSMoEConfig, RSMoEEncoderConfig, RSMoEExpertConfig, RSMoERouterConfig
    from .encoder_rsmoe import RSMoEVisionLanguageEncoder
    from .experts_rsmoe import RSMoEExpert
    from .modeling_rsmoe import RSMoEForConditionalGeneration, RSMoEModel
    from .processing_rsmoe import RSMoEProcessor
    from .router_rsmoe import RSMoEInstructionRouter

    base_models: dict = {RSMoEConfig: RSMoEModel, RSMoEEncoderConfig: RSMoEVisionLanguageEncoder}
    base_models |= {RSMoEExpertConfig: RSMoEExpert, RSMoERouterConfig: RSMoEInstructionRouter}
    for config, model in base_models.items():
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModel.register(config, model, exist_ok=True)
        config.register_for_auto_class()
        model.register_for_auto_class("AutoModel")
    for auto_class in (AutoModelForImageTextToText, AutoModelForMultimodalLM):
        auto_class.register(RSMoEConfig, RSMoEForConditionalGeneration, exist_ok=True)
    RSMoEForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")
    AutoProcessor.register(RSMoEConfig, RSMoEProcessor, exist_ok=True)
    RSMoEProcessor.register_for_auto_class()
