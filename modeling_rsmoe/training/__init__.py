"""Two-stage training: TRL's SFTTrainer over examples of all kinds, its settings, image features and checkpoints."""

from ..utils.extras import require


# All that a training needs, before it begins: what is missing at its end would cost hours.
for _module in ("datasets", "matplotlib", "tensorboard", "trl"):
    require(_module, "train")

from .settings import Recipe, TrainArguments, read_settings  # noqa: E402
from .stages import train_stage  # noqa: E402


__all__ = ["Recipe", "TrainArguments", "read_settings", "train_stage"]
