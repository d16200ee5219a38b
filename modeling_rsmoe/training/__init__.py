"""Two-stage training: TRL's SFTTrainer over rows of all kinds, its settings, cached image features and checkpoints."""

from .settings import Recipe, TrainArguments, read_settings
from .stages import train_stage1, train_stage2


__all__ = ["Recipe", "TrainArguments", "read_settings", "train_stage1", "train_stage2"]
