"""Fitting the confidence: a logistic regression from a text's signals to whether it is right.

It learns from predictions of images that the model has not learned from. A statement is right if all labelled objects
that it mentions are there; an answer, if it is the published one.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..configuration_rsmoe import ANSWER, BIAS, CONFIDENCE_SIGNALS, STATEMENT
from ..data.labels import OBJECTS_FILE, read_objects
from ..data.records import QuestionRecord, read_questions
from ..errors_rsmoe import RSMoEError
from ..evaluation.calibration import auroc, calibration_error
from ..evaluation.objects import mentions, object_labels
from ..evaluation.predict import Line, instruction_of, key_of, read_predictions
from ..evaluation.vqa import score_answers
from ..hub.folders import check_target, whole_folder
from ..prompting_rsmoe import Prompt
from ..sequences_rsmoe import unpad
from ..utils.files import cache_folder, write_whole
from ..utils.progress import Progress, no_progress
from ..utils.provenance import TRAINING_RECORD, folder_sha256, package_versions
from .features import FeatureCache
from .object_head import fit_logistic
from .outputs import STATE, history
from .settings import Recipe
from .stages import load_start


RIDGE = 0.001
HELD_OUT = 5  # parts of the images; each is held out once, to say what the confidence is worth
MIN_OF_A_KIND = 10  # right and wrong texts each: fewer teach nothing
BATCH = 16  # answers that the base LM reads together


def train_confidence(
    data: str | Path,
    output: str | Path,
    checkpoint: str | Path,
    predictions: Sequence[str | Path],
    *,
    features: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> dict[str, dict[str, float]]:
    """Fit how likely texts are right, and write the checkpoint with it; all weights stay.

    Args:
        data: a data folder with objects.jsonl for captions, vqa.jsonl for answers.
        output: the folder of the new checkpoint.
        checkpoint: the folder of a full model with a reranker that knows objects.
        predictions: files of its predictions on another split than `train`, as `rsmoe evaluate` writes them: captions
            with their expert texts, answers, or both.
        features: folder of image features, by default in the cache.
        overwrite: replace `output` if it is an RS-MoE checkpoint.
        progress: what happens.

    Returns:
        By what was fitted (`statement`, `answer`) on held-out images: `texts`, `right` (%), `auroc` (%) and
        `calibration_error` (%).

    Raises:
        RSMoEError: predictions of train images, too few right or wrong texts, a reranker without objects, or `output`
            exists.
    """
    output, start, folder = Path(output).absolute(), Path(checkpoint).absolute(), Path(data).absolute()
    check_target(output, overwrite)
    progress("reading the predictions")
    lines = [line for file in predictions for line in read_predictions(Path(file)).values()]
    if learned := [line for line in lines if line.get("split") == "train"]:
        raise RSMoEError(f"{learned[0]['image']} is of split train, which a model remembers; give predictions of val")
    model, processor = load_start(start, Recipe())
    model.eval()
    if model.model.reranker is None or model.model.reranker.objects is None:
        raise RSMoEError(
            f"{start} has no reranker that knows objects: fit one, with {OBJECTS_FILE} in the data folder"
        )
    cache = FeatureCache(features or cache_folder() / "features", model, processor)
    fit = _Fit(model, processor, cache, folder, progress)
    samples = {STATEMENT: fit.statements(lines), ANSWER: fit.answers(lines)}
    weights, worth = {}, {}
    for kind, (signals, is_right, images) in samples.items():
        if images:
            worth[kind], weights[kind] = _fitted(kind, signals, is_right, images)
    if not weights:
        raise RSMoEError(f"no prediction has labels in {folder / OBJECTS_FILE} or is of a question there; give others")
    progress(f"writing {output}")
    fitted = {"held_out": worth, "start": {"name": start.name, "sha256": folder_sha256(start)}}
    fitted["versions"] = package_versions()
    record = {**(history(start) or {"format": 1, "finished": False}), "confidence": fitted}
    with whole_folder(output, overwrite) as unfinished:
        shutil.copytree(start, unfinished, dirs_exist_ok=True, ignore=shutil.ignore_patterns(STATE))
        config = json.loads((start / "config.json").read_text(encoding="utf-8"))
        config["confidence_weights"] = {**(config.get("confidence_weights") or {}), **weights}
        write_whole(unfinished / "config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")
        write_whole(unfinished / TRAINING_RECORD, json.dumps(record, indent=2) + "\n")
    return worth


Samples = tuple[torch.Tensor, torch.Tensor, list[str]]  # signals [texts, signals], right [texts], each one's image


class _Fit:
    """What a model's texts are fitted to."""

    def __init__(self, model: Any, processor: Any, cache: FeatureCache, folder: Path, progress: Progress):
        self._model, self._processor, self._cache = model, processor, cache
        self._folder, self._progress = folder, progress

    def statements(self, lines: Sequence[Line]) -> Samples:
        """Of captions and expert texts about labelled images that mention a labelled object."""
        labels = object_labels(read_objects(self._folder))
        captioned = [line for line in lines if "caption" in line and self._folder / line["image"] in labels]
        signals, is_right, images = [], [], []
        self._cache.add([self._folder / line["image"] for line in captioned], self._progress)
        for place, line in enumerate(captioned):
            self._progress("reading captions", place, len(captioned), "images")
            image = self._folder / line["image"]
            texts = list(dict.fromkeys([line["caption"], *line.get("expert_texts", {}).values()]))
            mentioned = {text: mentions(text, labels[image].all) for text in texts}
            judged = [text for text in texts if mentioned[text]]
            if judged:
                ids = self._ids(judged)
                signals.append(self._model.statement_signals(self._cache([image]), ids))
                is_right += [float(mentioned[text] <= labels[image].present) for text in judged]
                images += [line["image"]] * len(judged)
        return torch.cat(signals) if signals else torch.empty(0), torch.tensor(is_right), images

    def answers(self, lines: Sequence[Line]) -> Samples:
        """Of questions with a published answer."""
        asked = [line for line in lines if "answer" in line and line["answer"]]
        if not asked:
            return torch.empty(0), torch.empty(0), []
        published = {key_of(record, self._folder): record for record in read_questions(self._folder)}
        known = [line for line in asked if (line["image"], line["question"]) in published]
        records = [published[line["image"], line["question"]] for line in known]
        if not records:
            return torch.empty(0), torch.empty(0), []
        self._cache.add([record.image for record in records], self._progress)
        signals = []
        for first in range(0, len(known), BATCH):
            self._progress("reading answers", first, len(known), "questions")
            answers = [line["answer"] for line in known[first : first + BATCH]]
            signals.append(self._answer_signals(records[first : first + BATCH], answers))
        each = score_answers(records, [line["answer"] for line in known]).each
        is_right = [score["accuracy"] / 100 for score in each]
        return torch.cat(signals), torch.tensor(is_right), [line["image"] for line in known]

    @torch.no_grad()
    def _answer_signals(self, records: Sequence[QuestionRecord], answers: Sequence[str]) -> torch.Tensor:
        model = self._model
        embeds = self._cache([record.image for record in records])
        prompts = [Prompt.base(instruction_of(record)) for record in records]
        inputs = self._processor(text=prompts, image_embeds=embeds, expert_inputs=False, return_tensors="pt")
        names = ("image_embeds", "qformer_input_ids", "qformer_attention_mask")
        features = model.get_image_features(**{name: inputs[name] for name in names}, return_dict=True).pooler_output
        end = model._eos_token_ids({})[:1]
        ids = unpad(inputs["input_ids"], inputs["attention_mask"])
        return model.answer_signals(ids, features, [answer + end for answer in self._ids(answers)])

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        """As they were written, with a space before."""
        return self._processor.tokenizer([f" {text}" for text in texts], add_special_tokens=False)["input_ids"]


def _fitted(
    kind: str, signals: torch.Tensor, is_right: torch.Tensor, images: Sequence[str]
) -> tuple[dict[str, float], dict[str, float]]:
    """What the confidence is worth on held-out images, and the weights fitted to all."""
    right = int(is_right.sum())
    if min(right, len(is_right) - right) < MIN_OF_A_KIND:
        raise RSMoEError(
            f"{right} of {len(is_right)} texts ({kind}) are right; a confidence needs {MIN_OF_A_KIND} right and "
            f"{MIN_OF_A_KIND} wrong ones: give predictions of more images"
        )
    groups = {image: place for place, image in enumerate(sorted(set(images)))}
    probabilities, rights = [], []
    for fold in range(HELD_OUT):  # each image is held out once
        held_out = torch.tensor([groups[image] % HELD_OUT == fold for image in images])
        if held_out.any() and not held_out.all():
            weights = _weights(kind, signals[~held_out], is_right[~held_out])
            of_signals = torch.tensor([weights[name] for name in CONFIDENCE_SIGNALS[kind]])
            probabilities.append((signals[held_out] @ of_signals + weights[BIAS]).sigmoid().numpy())
            rights.append(is_right[held_out].numpy())
    all_probabilities, all_rights = np.concatenate(probabilities), np.concatenate(rights)
    worth = {
        "texts": len(images),
        "right": round(100 * float(is_right.mean()), 1),
        "auroc": round(auroc(all_probabilities, all_rights), 1),
        "calibration_error": round(calibration_error(all_probabilities, all_rights), 1),
    }
    return worth, _weights(kind, signals, is_right)


def _weights(kind: str, signals: torch.Tensor, is_right: torch.Tensor) -> dict[str, float]:
    mean, spread = signals.mean(0), signals.std(0) + 1e-6
    weight, bias = fit_logistic((signals - mean) / spread, is_right[:, None], RIDGE)
    of_signals = (weight[0] / spread).tolist()
    named: Mapping[str, float] = dict(zip(CONFIDENCE_SIGNALS[kind], of_signals, strict=True))
    total = float(bias[0]) - sum(value * center for value, center in zip(of_signals, mean.tolist()))
    return {**{name: round(value, 6) for name, value in named.items()}, BIAS: round(total, 6)}
