"""Adapting the ViT to remote sensing, before stage 1 [our decision; the paper's ViT is frozen from the start].

All layers of the ViT learn, beside linear heads that are dropped afterwards. What the heads read is pooled as the
reranker pools it. Afterwards the ViT is frozen, as in the paper; Q-Former, base LM and reranker have to learn anew
what it says.
"""

import gc
import inspect
import json
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers import set_seed

from ..data.records import records_sha256
from ..errors_rsmoe import RSMoEError
from ..inference.encoder import load_encoder
from ..inference.loading import open_processor
from ..reranker_rsmoe import pool_image_features
from ..utils.images import read_images
from ..utils.progress import Progress, no_progress
from ..utils.provenance import folder_sha256, package_versions
from .checkpoints import load_parameters, save_tensors, train_to_the_end
from .encoder_examples import EncoderData, ImageTargets, read_encoder_data
from .modules import trained_parameters
from .outputs import (
    LEARNED,
    STATE,
    begin,
    decisive_arguments,
    examples_per_step,
    finish,
    finished_record,
    history,
    show,
    training_in,
)
from .settings import ENCODER, EncoderRecipe, Recipe, TrainArguments
from .stages import load_start
from .trainer import NamedLossesTrainer


MEASURED_IMAGES, MEASURED_BATCH = 256, 16  # whose pooled features give the heads' scale
# Losses of words and objects are sums over them: this brings them to the size of the other two.
WORD_LOSS_WEIGHT = OBJECT_LOSS_WEIGHT = 0.1


def train_encoder(
    recipe: EncoderRecipe,
    arguments: TrainArguments,
    data: str | Path,
    output: str | Path,
    checkpoint: str | Path,
    *,
    resume: bool = False,
    progress: Progress = no_progress,
) -> Path:
    """Train the ViT of a checkpoint and write the checkpoint with it, without its reranker; other weights stay.

    Args:
        recipe: which images, at which size.
        arguments: of the trainer; `output_dir` is set here.
        data: a data folder with captions.jsonl, perhaps objects.jsonl and scenes.jsonl; its train split is learned.
        output: the folder of the new checkpoint, and of the training's state.
        checkpoint: the folder that is trained from.
        resume: go on from the last checkpoint of a training in `output`, or begin if there is none yet.
        progress: what happens before the first step and after the last one.

    Returns:
        `output`.

    Raises:
        RSMoEError: unfitting settings or data, an image that is lost, a full disk. Checkpoints stay good.
    """
    start, output, folder = Path(checkpoint).absolute(), Path(output).absolute(), Path(data).absolute()
    is_first = arguments.process_index == 0
    arguments.output_dir = str(output / STATE)
    progress("reading the data")
    examples = read_encoder_data(folder, recipe.datasets)
    with training_in(output, arguments):
        if is_first:
            progress("hashing the data")
            record = _record(recipe, arguments, examples, folder, start)
            begin(output, record, resume)
        began = time.monotonic()
        weights, steps = _learn(recipe, arguments, examples, output, start, progress)
        if is_first:
            progress(f"writing {output}")
            gc.collect()  # the trainer's cycles hold a model
            record = finished_record(record, steps, arguments, began, history(start))
            model, processor = load_start(start, Recipe(vision="full"))
            save_tensors(weights, output / STATE / LEARNED)
            load_parameters(model, output / STATE / LEARNED)
            finish(output, start, model, processor, record, arguments)
    return output


def _record(
    recipe: EncoderRecipe, arguments: TrainArguments, data: EncoderData, folder: Path, start: Path
) -> dict[str, Any]:
    """What decides the outcome, as JSON values."""
    counts = {"captioned_images": len(data.captions), "object_labels": len(data.objects), "scenes": len(data.scenes)}
    record = {
        "format": 1,
        "stage": ENCODER,
        "finished": False,
        "recipe": asdict(recipe),
        "arguments": decisive_arguments(arguments),
        "data": {
            "sha256": records_sha256(data.records, folder),
            "datasets": list(dict.fromkeys(record.dataset for record in data.records)),
            **counts,
        },
        "start": {"name": start.name, "sha256": folder_sha256(start)},
        "versions": package_versions(),
    }
    return json.loads(json.dumps(record))


def _learn(
    recipe: EncoderRecipe,
    arguments: TrainArguments,
    data: EncoderData,
    output: Path,
    start: Path,
    progress: Progress,
) -> tuple[dict[str, torch.Tensor], int]:
    """Train to the end from wherever this training is: the ViT's weights by their names in a checkpoint, the steps."""
    progress("reading the captions")
    processor = open_processor(start)
    targets = ImageTargets(data, processor, recipe.image_size, arguments.seed)
    encoder = load_encoder(start)
    set_seed(arguments.seed)
    model = AdaptationModel(encoder.vision_model, targets)
    model.check_size(recipe.image_size)
    model.to(arguments.device)
    progress("measuring image features")
    model.measure(targets)
    batch = examples_per_step(arguments)
    if arguments.max_steps <= 0:
        arguments.max_steps = math.ceil(arguments.num_train_epochs * len(data.images) / batch)
    trainer = AdaptationTrainer(
        model=model,
        args=arguments,
        recipe=recipe,
        train_dataset=cast(Any, targets.examples(arguments.max_steps * batch)),
        data_collator=targets.collate,
    )
    show(output, trainer, ENCODER, batch)
    progress("training")
    train_to_the_end(trainer)
    learned = trained_parameters(model.vision_model)
    weights = {f"model.encoder.vision_model.{name}": value.detach().cpu() for name, value in learned.items()}
    return weights, trainer.state.global_step


class AdaptationModel(nn.Module):
    """A ViT and the heads that it learns beside.

    Args:
        vision_model: all of its weights learn, but for a mask token.
        targets: says how much there is to predict, and how often each word and object is.
    """

    mean: torch.Tensor
    spread: torch.Tensor

    def __init__(self, vision_model: nn.Module, targets: ImageTargets):
        super().__init__()
        self.vision_model = vision_model.requires_grad_(True)
        for name, parameter in vision_model.named_parameters():
            if name.endswith("mask_token"):  # DINOv2's, for its pretraining only
                parameter.requires_grad_(False)
        width = 3 * cast(Any, vision_model).config.hidden_size
        self.words = _frequency_head(width, targets.words)
        self.objects = _frequency_head(width, targets.objects)
        self.captions = nn.Linear(width, targets.captions.shape[1])
        self.scenes = nn.Linear(width, max(1, len(targets.scene_names)))
        self.register_buffer("mean", torch.zeros(width), persistent=False)
        self.register_buffer("spread", torch.ones(width), persistent=False)
        takes = inspect.signature(vision_model.forward).parameters
        # InstructBLIP's ViT takes other sizes than its own only when told so; DINOv2 always does.
        self.options = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in takes else {}

    def check_size(self, image_size: int) -> None:
        """Raises RSMoEError where the ViT's patches do not fill an image of that size."""
        patch = cast(Any, self.vision_model).config.patch_size
        if image_size % patch:
            raise RSMoEError(f"image_size is {image_size}; give a multiple of the ViT's patches of {patch} pixels")

    @torch.no_grad()
    def measure(self, targets: ImageTargets) -> None:
        """Set the scale of the pooled features, by a sample of the images as they are."""
        images = list(targets.place)
        sample = images[:: math.ceil(len(images) / MEASURED_IMAGES)]
        pooled = []
        for first in range(0, len(sample), MEASURED_BATCH):
            pixels = targets.pixels(read_images(sample[first : first + MEASURED_BATCH]))
            pooled.append(self.pool(pixels.to(self.mean.device)))
        features = torch.cat(pooled)
        self.mean, self.spread = features.mean(0), features.std(0, correction=0) + 1e-6

    def pool(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """[images, 3 x vision width], as the reranker pools; at the start each value has mean 0 and spread 1."""
        hidden = self.vision_model(pixel_values=pixel_values, **self.options).last_hidden_state
        return (pool_image_features(hidden) - self.mean) / self.spread

    def forward(
        self,
        pixel_values: torch.Tensor,
        words: torch.Tensor,
        captions: torch.Tensor,
        objects: torch.Tensor,
        scenes: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """
        Args:
            pixel_values: [images, 3, height, width].
            words: [images, words], the share of captions that have each; NaN for an image without captions.
            captions: [images, CAPTION_WIDTH], of unit length; NaN likewise.
            objects: [images, objects], 1 if there, 0 if not, NaN if not known.
            scenes: [images], NOT_A_SCENE where not known.

        Returns:
            `loss`, the sum of the other four; each is a mean over all images, one without a target counts as 0.
        """
        features = self.pool(pixel_values)
        with torch.autocast(features.device.type, enabled=False):
            has_captions = ~captions[:, 0].isnan()
            near = F.cosine_similarity(self.captions(features), captions.nan_to_num(), dim=-1)
            losses = {
                "loss_words": WORD_LOSS_WEIGHT * _known_cross_entropy(self.words(features), words),
                "loss_captions": ((1 - near) * has_captions).mean(),
                "loss_objects": OBJECT_LOSS_WEIGHT * _known_cross_entropy(self.objects(features), objects),
                "loss_scenes": F.cross_entropy(self.scenes(features), scenes, reduction="sum") / len(features),
            }
        return {"loss": torch.stack(list(losses.values())).sum(), **losses}


def _frequency_head(width: int, targets: torch.Tensor) -> nn.Linear:
    """A head that at first says how often each word or object is."""
    head = nn.Linear(width, targets.shape[1])
    with torch.no_grad():
        head.bias.copy_(torch.logit(targets.nanmean(0).nan_to_num().clamp(1e-3, 1 - 1e-3)))
    return head


def _known_cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy where the target is known, summed over the targets, a mean over images."""
    losses = F.binary_cross_entropy_with_logits(logits, targets.nan_to_num(), reduction="none")
    return (losses * ~targets.isnan()).sum(1).mean()


class AdaptationTrainer(NamedLossesTrainer):
    """Logs the losses of `AdaptationModel`, and gives the heads a learning rate of their own."""

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            args = self.args
            groups: dict[tuple[float, float], list[nn.Parameter]] = {}
            for name, parameter in trained_parameters(self.model if model is None else model).items():
                rate = args.learning_rate if "vision_model." in name else self.recipe.head_learning_rate
                groups.setdefault((rate, args.weight_decay if parameter.ndim > 1 else 0.0), []).append(parameter)
            self.optimizer = torch.optim.AdamW(
                [{"params": group, "lr": rate, "weight_decay": decay} for (rate, decay), group in groups.items()],
                betas=(args.adam_beta1, args.adam_beta2),
                eps=args.adam_epsilon,
            )
        return self.optimizer
