"""Before the examples of stage 1: the ViT's last norm is set, the Q-Former is aligned with captions [our decision].

BLIP-2 trains its Q-Former on image-text pairs before any LLM sees it; without that, nano's captions say little of the
image. Here the queries learn to name the frequent words of the captions (the best query counts, which keeps
queries apart), and their mean to lie near the captions' embedding by the Q-Former's own pretrained text path.
"""

import math
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from ..data.records import CaptionRecord
from ..encoder_rsmoe import RSMoEVisionLanguageEncoder
from ..errors_rsmoe import RSMoEError
from ..modeling_rsmoe import RSMoEForConditionalGeneration
from ..processing_rsmoe import RSMoEProcessor
from ..prompting_rsmoe import DEFAULT_INSTRUCTION
from ..utils.images import read_images
from ..utils.progress import Progress
from .checkpoints import save_tensors
from .features import VISION_BATCH, FeatureCache
from .modules import module_of, select_modules, trained_parameters
from .settings import Recipe
from .trainer import NamedLossesTrainer


MEASURED_IMAGES = 500  # images whose features give mean and spread
CAPTION_BATCH = 64  # captions that the Q-Former's text path embeds together
LAST_NORMS = ("layernorm", "post_layernorm")  # of the ViTs of transformers
TEMPERATURE = 0.05
MAX_WORD_SHARE = 0.5  # words of more images say nothing of an image
WORD_LOSS_WEIGHT = 0.1  # of the words' loss, which is a sum over words
WORD_BIAS = -4.0  # most words are not of an image


@torch.no_grad()
def standardize_vision(
    model: RSMoEForConditionalGeneration,
    processor: RSMoEProcessor,
    images: Sequence[Path],
    seed: int,
    progress: Progress,
) -> None:
    """Let each channel of the ViT's features have mean 0 and spread 1 over a sample of the images, by its last norm.

    A ViT that was cut has no norm of its own at that layer.

    Args:
        model: its ViT's last norm is set in place.
        processor: makes pixels.
        images: of the training.
        seed: of the sample.
        progress: how many images are measured.

    Raises:
        RSMoEError: the ViT has no last norm.
    """
    vision = model.model.encoder.vision_model
    norm = next((getattr(vision, name) for name in LAST_NORMS if hasattr(vision, name)), None)
    if not isinstance(norm, nn.LayerNorm):
        raise RSMoEError(
            f"vision_config.model_type {vision.config.model_type!r} has no last norm; set standardize_vision to false"
        )
    norm.weight.fill_(1)
    norm.bias.zero_()
    sample = random.Random(f"{seed}/standardize").sample(list(images), min(MEASURED_IMAGES, len(images)))
    count, (total, squares) = 0, torch.zeros(2, norm.weight.numel(), dtype=torch.double)
    for start in range(0, len(sample), VISION_BATCH):
        progress("measuring image features", start, len(sample), "images")
        batch = read_images(sample[start : start + VISION_BATCH])
        pixels = processor.image_processor(images=batch, return_tensors="pt")["pixel_values"]
        values = model.encode_image(pixels.to(model.device)).flatten(0, 1).double().cpu()
        count += len(values)
        total += values.sum(0)
        squares += values.square().sum(0)
    mean = total / count
    spread = (squares / count - mean.square()).clamp(min=1e-12).sqrt()
    norm.weight.copy_(1 / spread)
    norm.bias.copy_(-mean / spread)


class AlignmentModel(nn.Module):
    """The encoder with two heads that are dropped afterwards.

    Args:
        encoder: its queries and Q-Former learn.
        words: number of words that queries may name.
    """

    def __init__(self, encoder: RSMoEVisionLanguageEncoder, words: int):
        super().__init__()
        width = encoder.config.qformer_config.hidden_size
        self.encoder = encoder
        self.words, self.embedding = nn.Linear(width, words), nn.Linear(width, width)
        nn.init.constant_(self.words.bias, WORD_BIAS)

    def forward(
        self, image_embeds: torch.Tensor, qformer_input_ids: torch.LongTensor, words: torch.Tensor, texts: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """
        Args:
            image_embeds: [images, patches, vision width].
            qformer_input_ids: [images, tokens].
            words: [images, words], 1 for those of the image's captions.
            texts: [images, Q-Former width], embeddings of captions, of unit length.

        Returns:
            `loss`, the sum of `loss_words` and `loss_contrast`.
        """
        with torch.autocast(image_embeds.device.type, enabled=False):  # similarities are too fine for bfloat16
            hidden = self.encoder.query_states(image_embeds=image_embeds, qformer_input_ids=qformer_input_ids)
            named = self.words(hidden).logsumexp(1) - math.log(hidden.shape[1])  # soft maximum over the queries
            word = F.binary_cross_entropy_with_logits(named, words, reduction="none").sum(1).mean() * WORD_LOSS_WEIGHT
            pooled = F.normalize(self.embedding(hidden).mean(1), dim=-1)
            same = (texts @ texts.T / TEMPERATURE).softmax(-1)  # captions that are nearly the same share the target
            entropy = -(same * same.clamp(min=1e-30).log()).sum(-1).mean()
            contrast = F.cross_entropy(pooled @ texts.T / TEMPERATURE, same) - entropy
            return {"loss": word + contrast, "loss_words": word, "loss_contrast": contrast}


class AlignmentTrainer(NamedLossesTrainer):
    """Logs both losses of `AlignmentModel`, and gives the pretrained Q-Former a learning rate of its own."""

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            recipe = self.recipe
            groups: dict[float, list[nn.Parameter]] = {}
            for name, parameter in trained_parameters(self.model if model is None else model).items():
                pretrained = module_of(name) == "qformer"
                rate = recipe.alignment_qformer_learning_rate if pretrained else recipe.alignment_learning_rate
                groups.setdefault(rate, []).append(parameter)
            self.optimizer = torch.optim.AdamW(
                [{"params": group, "lr": rate} for rate, group in groups.items()], weight_decay=self.args.weight_decay
            )
        return self.optimizer


class CaptionPairs:
    """What alignment learns from: images, the words of their captions, and embeddings of the captions.

    Args:
        model: as it starts; its Q-Former's text path embeds the captions.
        processor: makes tokens.
        records: at least two images.
        features: of all these images.
        file: safetensors that the embeddings are kept in.
        progress: how many captions are embedded.

    Raises:
        RSMoEError: fewer than two images, or captions that do not differ.
    """

    def __init__(
        self,
        model: RSMoEForConditionalGeneration,
        processor: RSMoEProcessor,
        records: Sequence[CaptionRecord],
        features: FeatureCache,
        file: Path,
        progress: Progress,
    ):
        if len(records) < 2:
            raise RSMoEError(f"alignment_steps needs captions of two images or more, there are {len(records)}")
        self.records, self.features = records, features
        self.words = frequent_words(records)
        unique = list(dict.fromkeys(caption for record in records for caption in record.captions))
        self._place = {caption: place for place, caption in enumerate(unique)}
        if not file.is_file():
            save_tensors({"embeddings": _embed(model, processor, unique, progress)}, file)
        self.embeddings = load_file(file)["embeddings"]  # [captions, Q-Former width]
        self.instruction = processor.tokenize_qformer([DEFAULT_INSTRUCTION], "pt")["qformer_input_ids"]

    def examples(self, count: int, seed: int) -> list[dict[str, Any]]:
        """`count` pairs of an image and one of its captions, in passes over all images."""
        order: list[dict[str, Any]] = []
        while len(order) < count:
            rng = random.Random(f"{seed}/align/{len(order)}")  # as when nano was trained
            places = rng.sample(range(len(self.records)), len(self.records))
            for i in places:
                caption = rng.randrange(len(self.records[i].captions))
                order.append({"image": str(self.records[i].image), "record": i, "caption": caption})
        return order[:count]

    def collate(self, examples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """The inputs of `AlignmentModel`."""
        records = [self.records[example["record"]] for example in examples]
        words = torch.zeros(len(records), len(self.words))
        for place, record in enumerate(records):
            words[place, [self.words[word] for word in _words_of(record) if word in self.words]] = 1
        captions = [record.captions[example["caption"]] for record, example in zip(records, examples)]
        return {
            "image_embeds": self.features([record.image for record in records]),
            "qformer_input_ids": self.instruction.expand(len(records), -1),
            "words": words,
            "texts": self.embeddings[[self._place[caption] for caption in captions]],
        }


def select_queries(model: RSMoEForConditionalGeneration, recipe: Recipe) -> None:
    """Let the Q-Former learn as the recipe says, and the query tokens; the base LM has no share in alignment."""
    select_modules(model, Recipe(qformer=recipe.qformer, projection="full", language_model="frozen"))
    model.model.encoder.projection.requires_grad_(False)


def frequent_words(records: Sequence[CaptionRecord]) -> dict[str, int]:
    """Words of some of the images, but not of most, in alphabetical order with their places."""
    counts = Counter(word for record in records for word in _words_of(record))
    fewest, most = max(2, len(records) // 500), MAX_WORD_SHARE * len(records)
    words = sorted(word for word, count in counts.items() if fewest <= count <= most)
    if not words:
        raise RSMoEError("alignment_steps needs captions that differ between images: no word is in some of them only")
    return {word: place for place, word in enumerate(words)}


def _words_of(record: CaptionRecord) -> set[str]:
    text = " ".join(record.captions).lower()
    return set("".join(character if character.isalpha() else " " for character in text).split())


@torch.no_grad()
def _embed(
    model: RSMoEForConditionalGeneration, processor: RSMoEProcessor, captions: list[str], progress: Progress
) -> torch.Tensor:
    """[captions, Q-Former width], of unit length: the mean over tokens, as of the text encoder that it comes from."""
    vectors = []
    for start in range(0, len(captions), CAPTION_BATCH):
        progress("embedding captions", start, len(captions), "captions")
        encoded = processor.tokenize_qformer(captions[start : start + CAPTION_BATCH], "pt")
        ids = encoded["qformer_input_ids"].to(model.device)
        mask = encoded["qformer_attention_mask"].to(model.device)
        hidden = model.model.encoder.qformer(input_ids=ids, attention_mask=mask).last_hidden_state
        mask = mask.unsqueeze(-1)
        vectors.append(F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1).cpu())
    return torch.cat(vectors)
