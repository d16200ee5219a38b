"""What the image encoder is adapted with: images, turned and cropped, and what people said of each.

Four kinds of targets [our decision]: words of the captions, the captions' n-grams as the reranker weighs them, object
labels, and scenes. An image has those that it was labelled with.
"""

import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image, ImageEnhance

from ..data.cleaning import words
from ..data.labels import ObjectRecord, SceneRecord, read_objects, read_scenes
from ..data.records import CaptionRecord, read_captions
from ..errors_rsmoe import RSMoEError
from ..processing_rsmoe import RSMoEProcessor
from ..reranker_rsmoe import RSMoEReranker
from ..utils.images import read_images
from .reranker import token_ids, weigh_captions


MAX_WORDS = 400  # the most frequent ones of the captions
CAPTION_WIDTH = 128  # of the vectors that stand for an image's captions
NGRAM_BUCKETS = 4096  # as many as the reranker has by default
MIN_CROP = 0.8  # share of a side
JITTER = 0.15  # of brightness, contrast and colour
NOT_A_SCENE = -100  # as torch's cross-entropy ignores it
# Words that a flip or a quarter turn makes wrong.
DIRECTIONS = "left|right|top|bottom|upper|lower|above|below|north(ern)?|south(ern)?|east(ern)?|west(ern)?"
DIRECTIONS += "|(north|south)(east|west)(ern)?|horizontal(ly)?|vertical(ly)?|(left|right)most"
_DIRECTIONS = re.compile(rf"\b({DIRECTIONS})\b", re.IGNORECASE)
_TURNS = [None, Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270]


@dataclass
class EncoderData:
    """The train split of a data folder: its records, each once, and how often each dataset is drawn."""

    captions: list[CaptionRecord]
    objects: list[ObjectRecord]
    scenes: list[SceneRecord]
    images: list[Path]  # of one pass

    @property
    def records(self) -> list[Any]:
        return [*self.captions, *self.objects, *self.scenes]


def read_encoder_data(folder: Path, datasets: Sequence[str] | None) -> EncoderData:
    """Captions, object labels and scenes of the train split.

    Args:
        folder: the data folder; it must have captions, and may have objects.jsonl and scenes.jsonl.
        datasets: by default all; one that is named twice is drawn twice as often.

    Raises:
        RSMoEError: as of the readers, a dataset that the folder does not have, or too few images.
    """
    captions, objects, scenes = (
        read_captions(folder, "train"),
        read_objects(folder, "train"),
        read_scenes(folder, "train"),
    )
    every: list[Any] = [*objects, *scenes, *captions]
    dataset_of = {record.image: record.dataset for record in every}
    known = set(dataset_of.values())
    for name in datasets or ():
        if name not in known:
            raise RSMoEError(
                f'unknown dataset "{name}" in the train split of {folder}; known: {", ".join(sorted(known))}'
            )
    drawn = Counter(known if datasets is None else datasets)
    images = [image for image in sorted(dataset_of) for _ in range(drawn[dataset_of[image]])]
    chosen = set(images)
    data = EncoderData(
        [record for record in captions if record.image in chosen],
        [record for record in objects if record.image in chosen],
        [record for record in scenes if record.image in chosen],
        images,
    )
    if len({record.image for record in data.captions}) < 2:
        raise RSMoEError(f"the encoder learns from captions of two images or more; {folder} has {len(data.captions)}")
    return data


class ImageTargets:
    """What each image teaches, as tensors; NaN, or `NOT_A_SCENE`, where nothing is known.

    Args:
        data: of the train split.
        processor: makes pixels, and tokens of the captions.
        image_size: pixels of a side.
        seed: of the crops and turns, and of the order of the images.
    """

    def __init__(self, data: EncoderData, processor: RSMoEProcessor, image_size: int, seed: int):
        self.images, self.image_size, self.seed = data.images, image_size, seed
        self.image_processor: Any = processor.image_processor
        self.place = {image: place for place, image in enumerate(dict.fromkeys(data.images))}
        captions = [replace(record, captions=without_directions(record.captions)) for record in data.captions]
        self.word_names = frequent_words(captions)
        self.object_names = sorted({name for record in data.objects for name in (*record.present, *record.absent)})
        self.scene_names = sorted({record.scene for record in data.scenes})

        count, unknown = len(self.place), float("nan")
        self.words = torch.full((count, len(self.word_names)), unknown)
        for record in captions:
            self.words[self.place[record.image]] = word_shares(record, self.word_names)
        vectors = caption_vectors(captions, processor, seed)
        self.captions = torch.full((count, vectors.shape[1]), unknown)
        self.captions[[self.place[record.image] for record in captions]] = vectors
        self.objects = torch.full((count, len(self.object_names)), unknown)
        for labels in data.objects:
            for value, names in ((1.0, labels.present), (0.0, labels.absent)):
                self.objects[self.place[labels.image], [self.object_names.index(name) for name in names]] = value
        self.scenes = torch.full((count,), NOT_A_SCENE)
        for label in data.scenes:
            self.scenes[self.place[label.image]] = self.scene_names.index(label.scene)

    def examples(self, count: int) -> list[dict[str, Any]]:
        """`count` images in passes over all of them, each pass in an order of its own."""
        order: list[Path] = []
        while len(order) < count:
            order += random.Random(f"{self.seed}/encoder/{len(order)}").sample(self.images, len(self.images))
        return [{"image": str(image), "example": number} for number, image in enumerate(order[:count])]

    def collate(self, examples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """The inputs of `AdaptationModel`. A number of an example gives the same crop in every run."""
        images = read_images([Path(example["image"]) for example in examples])
        rngs = [random.Random(f"{self.seed}/view/{example['example']}") for example in examples]
        places = [self.place[Path(example["image"])] for example in examples]
        return {
            "pixel_values": self.pixels([view(image, rng) for image, rng in zip(images, rngs)]),
            "words": self.words[places],
            "captions": self.captions[places],
            "objects": self.objects[places],
            "scenes": self.scenes[places],
        }

    def pixels(self, images: list[Image.Image]) -> torch.Tensor:
        """[images, 3, image_size, image_size], as the checkpoint's image processor makes them."""
        size = {"height": self.image_size, "width": self.image_size}
        return self.image_processor(images=images, size=size, return_tensors="pt")["pixel_values"]


def view(image: Image.Image, rng: random.Random) -> Image.Image:
    """The image as it might look too: a quarter turn, a flip, a crop of most of it, other light."""
    share = rng.uniform(MIN_CROP, 1)
    width, height = (max(1, round(side * share)) for side in image.size)
    left, top = rng.randint(0, image.width - width), rng.randint(0, image.height - height)
    image = image.convert("RGB").crop((left, top, left + width, top + height))
    if (turn := rng.choice(_TURNS)) is not None:
        image = image.transpose(turn)
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = enhance(image).enhance(rng.uniform(1 - JITTER, 1 + JITTER))
    return image


def without_directions(captions: Sequence[str]) -> tuple[str, ...]:
    """The captions without the words that do not hold once the image is turned.

    >>> without_directions(["Two planes on the left of the upper terminal."])
    ('Two planes on the  of the  terminal.',)
    """
    return tuple(_DIRECTIONS.sub("", caption) for caption in captions)


def frequent_words(captions: Sequence[CaptionRecord]) -> dict[str, int]:
    """The words that most captions have, with their places: at most `MAX_WORDS`."""
    counts = Counter(word for record in captions for text in record.captions for word in sorted(set(words(text))))
    return {word: place for place, (word, _) in enumerate(counts.most_common(MAX_WORDS))}


def word_shares(record: CaptionRecord, places: dict[str, int]) -> torch.Tensor:
    """[words]: the share of the image's captions that have the word."""
    shares = torch.zeros(len(places))
    for text in record.captions:
        for word in set(words(text)) & places.keys():
            shares[places[word]] += 1 / len(record.captions)
    return shares.clamp(max=1)


def caption_vectors(captions: Sequence[CaptionRecord], processor: RSMoEProcessor, seed: int) -> torch.Tensor:
    """[images, CAPTION_WIDTH at most], of unit length: the main directions of the captions' tf-idf weights."""
    scratch = RSMoEReranker(CAPTION_WIDTH, 1, NGRAM_BUCKETS)
    texts = weigh_captions(scratch, token_ids(captions, processor))  # [images, buckets]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        *_, directions = torch.svd_lowrank(texts, min(CAPTION_WIDTH, len(captions)), niter=4)
    vectors = torch.sparse.mm(texts, directions)
    return F.normalize(vectors - vectors.mean(0), dim=-1)
