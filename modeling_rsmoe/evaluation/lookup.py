"""Baselines that see the image and write nothing: a caption of the train split, looked up by what a checkpoint sees.

`nearest`: the caption on which those of the most similar training images agree. `retrieval`: of all different training
captions the one that the checkpoint's reranker finds to fit the image best. A model that writes has to beat both.

Image features are kept where a training keeps them (`training.features`): each image is encoded once.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..data.cleaning import clean_caption
from ..data.records import CaptionRecord, records_sha256
from ..errors_rsmoe import RSMoEError
from ..inference.loading import read_json
from ..inference.resume import KeyedLog
from ..utils.files import cache_folder, only_writer
from ..utils.progress import Progress, no_progress
from ..utils.provenance import folder_sha256, weights_sha256
from .baselines import nearest_captions, retrieved_captions
from .predict import Line, key_of, key_of_line, record_fields, text_field
from .report import CheckpointEntry
from .run import TRAIN, Predictions, Selection


if TYPE_CHECKING:
    from ..inference.checkpoint import Checkpoint

NEAREST, RETRIEVAL = "nearest", "retrieval"
LOOKUPS = (NEAREST, RETRIEVAL)


def known_lookups(selection: Selection, model: str, progress: Progress = no_progress) -> list[str]:
    """The look-ups that there can be for these records and this checkpoint: none without training captions,
    `retrieval` only with a reranker.

    Args:
        selection: captioned images, or questions, which have none.
        model: a checkpoint's folder or name.
        progress: says what is being done.
    """
    from ..inference.checkpoint import find_checkpoint

    if selection.task != "captioning" or not selection.train:
        return []
    return list(LOOKUPS) if _has_reranker(find_checkpoint(model, progress)) else [NEAREST]


def predictions_by_lookups(
    selection: Selection,
    model: str,
    files: Mapping[str, Path],
    features: str | Path | None = None,
    progress: Progress = no_progress,
) -> dict[str, Predictions]:
    """What look-ups say to each record. The checkpoint is loaded only if a file lacks a record.

    Args:
        selection: captioned images, of another split than `train`.
        model: a checkpoint's folder or name.
        files: JSONL by the names of the look-ups, which predictions are written to.
        features: folder of image features, by default in the cache.
        progress: says what is being done.

    Raises:
        RSMoEError: the task is not captioning, there are no training captions or it is they that would be scored, the
            checkpoint has no reranker to retrieve by, an image cannot be read, or another run made a file.
    """
    from ..inference.checkpoint import find_checkpoint, load

    names = list(files)
    if not names:
        return {}
    if selection.task != "captioning":
        raise RSMoEError(f"{names[0]} looks up captions; give --task captioning")
    if selection.split == TRAIN:
        raise RSMoEError(f'{names[0]} would find each image\'s own caption in split "{TRAIN}"; score another split')
    if not selection.train:
        raise RSMoEError(f"{names[0]} takes captions of the train split, and {selection.folder} has none; add one")
    folder = find_checkpoint(model, progress)
    if RETRIEVAL in names and not _has_reranker(folder):
        raise RSMoEError(f"{RETRIEVAL} is by a reranker, and {model} has none; fit one by `rsmoe train reranker`")
    progress(f"hashing {model}")
    entry: CheckpointEntry = {"name": Path(model).name, "sha256": weights_sha256(folder)}
    settings = {"checkpoint": folder_sha256(folder), "train": records_sha256(selection.train, selection.folder)}
    keys = [key_of(record, selection.folder) for record in selection.all()]
    lookup: _Lookup | None = None
    predicted = {}
    for name, file in files.items():
        with only_writer(file):
            log = KeyedLog(file, {"system": name, **settings}, key_of_line)
            if any(key not in log.lines for key in keys):
                lookup = lookup or _Lookup(load(str(folder), "float32", progress=progress), features, progress)
                log.add(_lines(selection, lookup.retrieved if name == RETRIEVAL else lookup.nearest))
        predicted[name] = Predictions(name, {key: log.lines[key] for key in keys}, entry)
    return predicted


class _Lookup:
    """What a loaded checkpoint looks up for images.

    Args:
        checkpoint: sees the images.
        features: folder of image features; None: in the cache.
        progress: says what is being done.
    """

    def __init__(self, checkpoint: "Checkpoint", features: str | Path | None, progress: Progress):
        from ..training.features import FeatureCache

        self._model, self._processor, self._progress = checkpoint.model, checkpoint.processor, progress
        self._cache = FeatureCache(features or cache_folder() / "features", self._model, self._processor)

    def nearest(self, records: Sequence[CaptionRecord], train: Sequence[CaptionRecord]) -> list[str]:
        """Of the same dataset, where it has a train split."""
        datasets = {record.dataset for record in records}
        train = [record for record in train if record.dataset in datasets] or train
        return nearest_captions(train, self._pooled(train).numpy(), self._pooled(records).numpy())

    def retrieved(self, records: Sequence[CaptionRecord], train: Sequence[CaptionRecord]) -> list[str]:
        """Of all datasets, as the reranker was fitted to all: it reads captions as a training cleans them."""
        reranker = self._model.model.reranker
        assert reranker is not None
        texts: dict[str, str] = {}  # as published, by the cleaned text
        for caption in (caption for record in train for caption in record.captions):
            texts.setdefault(f" {clean_caption(caption)}", caption)
        self._progress(f"reading {len(texts):,} training captions")
        ids = self._processor.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        with torch.inference_mode():
            captions = torch.stack([reranker.embed(text) for text in ids])
            images = reranker.image_projection(self._pooled(records).to(reranker.image_projection.weight)).float()
        return retrieved_captions(list(texts.values()), captions.cpu().numpy(), images.cpu().numpy())

    def _pooled(self, records: Sequence[CaptionRecord]) -> torch.Tensor:
        from ..training.reranker import pooled_features

        return pooled_features(self._cache, [record.image for record in records], self._progress)


def _lines(
    selection: Selection, look_up: Callable[[Sequence[CaptionRecord], Sequence[CaptionRecord]], list[str]]
) -> Iterator[Line]:
    for records in selection.records.values():
        for record, text in zip(records, look_up(records, selection.train), strict=True):
            yield {**record_fields(record, selection.folder), text_field(record): text}


def _has_reranker(folder: Path) -> bool:
    return bool(read_json(folder / "config.json").get("reranker_rank", 0))
