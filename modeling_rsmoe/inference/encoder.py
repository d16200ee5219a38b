"""The image encoder of a checkpoint: loaded alone, and known by a hash, under which features of images are kept."""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..utils.quiet import quiet_libraries
from .loading import open_config, open_model


if TYPE_CHECKING:
    from ..encoder_rsmoe import RSMoEVisionLanguageEncoder
    from ..processing_rsmoe import RSMoEProcessor

_NOT_ARCHITECTURE = {"architectures", "auto_map", "dtype", "image_processor_type", "processor_class"}
_NOT_ARCHITECTURE |= {"transformers_version"}


def encoder_sha256(encoder: "RSMoEVisionLanguageEncoder", processor: "RSMoEProcessor") -> str:
    """A hash of all that image features depend on: the ViT's weights and configuration, and the preprocessing.

    Weights that were rounded on loading (bfloat16) are other weights.
    """
    vision: Any = encoder.vision_model
    image_processor: Any = processor.image_processor
    digest = hashlib.sha256()
    for settings in (vision.config.to_dict(), image_processor.to_dict()):
        relevant = {
            key: value for key, value in settings.items() if not key.startswith("_") and key not in _NOT_ARCHITECTURE
        }
        digest.update(json.dumps(relevant, sort_keys=True, default=str).encode())
    for name, tensor in sorted(vision.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def load_encoder(folder: str | Path) -> "RSMoEVisionLanguageEncoder":
    """The encoder of a checkpoint's folder in float32; router, experts and base LM are not loaded."""
    from ..configuration_rsmoe import RSMoEEncoderConfig
    from ..encoder_rsmoe import RSMoEVisionLanguageEncoder

    with quiet_libraries():  # else a report of all that is not loaded
        values = {**open_config(folder).to_dict(), "model_type": RSMoEEncoderConfig.model_type}
        encoder = open_model(
            RSMoEVisionLanguageEncoder,
            folder,
            "the encoder of",
            config=RSMoEEncoderConfig.from_dict(values),
            key_mapping={r"^model\.encoder\.": ""},
            dtype="float32",
        )
    return encoder.eval()
