"""Fitting the reranker's object head: a logistic regression from images to the objects that people labelled.

Logistic, so that its probabilities can be compared with one threshold for all objects. The ridge is chosen on a tenth
of the labelled train images.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from ..data.labels import read_objects
from ..evaluation.objects import ObjectLabels, object_labels, object_words
from ..objects_rsmoe import RSMoEObjectHead


MIN_OF_A_KIND = 10  # images that have an object, and as many that have it not: fewer teach nothing
RIDGE_GRID = (0.001, 0.003, 0.01, 0.03, 0.1)
HOLDOUT_EVERY = 10
MAX_ITERATIONS = 200  # of the solver


def labelled_images(folder: Path, datasets: Sequence[str] | None) -> dict[Path, ObjectLabels]:
    """The object labels of the train images, as faithfulness and coverage read them; none without objects.jsonl.

    Args:
        folder: a data folder.
        datasets: of it; by default all.
    """
    records = [record for record in read_objects(folder, "train") if datasets is None or record.dataset in datasets]
    return object_labels(records)


def learnable_objects(labels: Sequence[ObjectLabels]) -> dict[str, list[str]]:
    """The objects that enough images have and have not, each with the words that mention it.

    Args:
        labels: of all images.
    """
    names = sorted(frozenset().union(*(of_image.all for of_image in labels)))
    present = Counter(name for of_image in labels for name in of_image.present)
    absent = Counter(name for of_image in labels for name in of_image.absent)
    return {name: object_words(name) for name in names if min(present[name], absent[name]) >= MIN_OF_A_KIND}


@torch.no_grad()
def fit_object_head(head: RSMoEObjectHead, pooled: torch.Tensor, labels: Sequence[ObjectLabels]) -> dict[str, float]:
    """Set the head's projection in place.

    Args:
        head: of these features' width.
        pooled: [images, 3 x vision width], of `pool_image_features`.
        labels: of the images.

    Returns:
        Ridge -> mean cross-entropy of the held-out images' labels. The best ridge is taken.
    """
    targets = torch.full((len(labels), len(head.names)), torch.nan)
    for row, of_image in zip(targets, labels, strict=True):
        for place, name in enumerate(head.names):
            if name in of_image.all:
                row[place] = float(name in of_image.present)
    mean, spread = pooled.mean(0), pooled.std(0) + 1e-6
    scaled = (pooled - mean) / spread
    held_out = torch.arange(len(labels)) % HOLDOUT_EVERY == 0
    losses = {}
    for ridge in RIDGE_GRID:
        weight, bias = fit_logistic(scaled[~held_out], targets[~held_out], ridge)
        losses[ridge] = float(_loss(scaled[held_out] @ weight.T + bias, targets[held_out]))
    weight, bias = fit_logistic(scaled, targets, min(losses, key=lambda ridge: losses[ridge]))
    head.projection.weight.copy_(weight / spread)
    head.projection.bias.copy_(bias - (weight / spread) @ mean)
    return {str(ridge): round(loss, 4) for ridge, loss in losses.items()}


def token_texts(tokenizer: Any) -> list[str]:
    """The text of each token, with the space before it where it begins a word.

    Args:
        tokenizer: of the LLM.
    """
    anchor = tokenizer("a", add_special_tokens=False)["input_ids"]  # some decoders drop the first token's space
    ids = [[*anchor, token] for token in range(len(tokenizer))]
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    length = len(tokenizer.decode(anchor))
    return [text[length:] for text in texts]


@torch.enable_grad()
def fit_logistic(features: torch.Tensor, targets: torch.Tensor, ridge: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights [targets, width] and biases [targets] of least cross-entropy plus `ridge` / 2 times squared weights.

    Args:
        features: [items, width].
        targets: [items, targets] of 0, 1 and, where nothing is known, not a number.
        ridge: of the weights.
    """
    weight = torch.zeros(targets.shape[1], features.shape[1], requires_grad=True)
    bias = torch.zeros(targets.shape[1], requires_grad=True)
    solver = torch.optim.LBFGS([weight, bias], max_iter=MAX_ITERATIONS, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        solver.zero_grad()
        penalty = ridge / 2 * weight.square().sum() / targets.shape[1]
        loss = _loss(features @ weight.T + bias, targets) + penalty
        loss.backward()
        return loss

    solver.step(closure)  # type: ignore[arg-type]
    return weight.detach(), bias.detach()


def _loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean over all labels that are known."""
    is_known = ~targets.isnan()
    return F.binary_cross_entropy_with_logits(logits[is_known], targets[is_known])
