"""The reranker: which of several texts fits an image best, judged by the image alone [our decision].

The base LM and the experts read the same image and often say different things; nothing in them says which of it is
right. The reranker does: from the ViT's features it predicts the n-grams of the image's captions, weighted as in CIDEr,
and a text scores as much as its n-grams agree with those. It is linear and fitted in closed form
(`rsmoe train reranker`), so it costs next to nothing and is never trained by gradients.
"""

import math
from collections import Counter
from collections.abc import Sequence

import torch
from torch import nn

from .errors_rsmoe import RSMoEError


LONGEST = 4  # tokens of an n-gram, as in CIDEr
# A rolling hash puts n-grams into buckets: no list of them has to be kept. Every step stays below 2**63.
FACTOR, MODULUS = 1_000_003, 2**31 - 1


class RSMoEReranker(nn.Module):
    """
    Args:
        width: of the ViT's features.
        rank: of the map from features to n-grams.
        buckets: number of hashed n-grams.

    Raises:
        RSMoEError: a rank above what so many features and n-grams have.
    """

    def __init__(self, width: int, rank: int, buckets: int):
        super().__init__()
        if rank > min(3 * width, buckets):
            raise RSMoEError(
                f"reranker_rank is {rank}; with features of width {width} and {buckets} n-grams give {min(3 * width, buckets)} at "
                "most."
            )
        self.image_projection = nn.Linear(3 * width, rank)
        self.ngram_embeddings = nn.Embedding(buckets, rank)
        self.idf = nn.Embedding(buckets, 1)  # inverse document frequency
        self.requires_grad_(False)

    def forward(self, image_embeds: torch.Tensor, texts: Sequence[Sequence[Sequence[int]]]) -> list[torch.Tensor]:
        """How well each text fits its image: about the share of the n-grams of its captions that it has.

        Args:
            image_embeds (`torch.Tensor` of shape `(images, patches, vision width)`): of `encode_image`.
            texts: for each image any number of texts, each as token ids without special tokens.

        Returns:
            For each image a `torch.Tensor` of shape `(texts,)`, in float32.
        """
        wanted = self.image_projection(
            pool_image_features(image_embeds).to(self.image_projection.weight)
        )  # [images, rank]
        return [torch.stack([self.vector(text) @ own for text in some]) for own, some in zip(wanted.float(), texts)]

    def vector(self, text: Sequence[int]) -> torch.Tensor:
        """[rank], float32: the text's n-grams, those of each length scaled so that a product of two texts is the mean of
        their cosines over the lengths."""
        places, weights = self.weigh(text)
        if not places:
            return self.ngram_embeddings.weight.new_zeros(self.ngram_embeddings.embedding_dim, dtype=torch.float32)
        device = self.ngram_embeddings.weight.device
        rows = self.ngram_embeddings(torch.tensor(places, device=device)).float()
        return torch.tensor(weights, device=device) @ rows

    def weigh(self, text: Sequence[int]) -> tuple[list[int], list[float]]:
        """Buckets of the text's n-grams and their weights (tf-idf)."""
        places: list[int] = []
        weights: list[float] = []
        for counts in hashed_ngrams(text, self.ngram_embeddings.num_embeddings):
            own = list(counts)
            rarity = self.idf.weight[own, 0].tolist()
            found = [count * rare for count, rare in zip(counts.values(), rarity)]
            length = math.sqrt(LONGEST * sum(weight**2 for weight in found))
            if length:
                places += own
                weights += [weight / length for weight in found]
        return places, weights


def pool_image_features(image_embeds: torch.Tensor) -> torch.Tensor:
    """What the reranker sees of images, [images, 3 x vision width]: the first token (of most ViTs the class token), mean and
    spread of all."""
    values = image_embeds.float()
    return torch.cat([values[:, 0], values.mean(1), values.std(1, correction=0)], dim=1)


def hashed_ngrams(text: Sequence[int], buckets: int) -> list[Counter[int]]:
    """For each length from 1 to 4 how often the text's n-grams fall into each bucket."""
    found = []
    for length in range(1, LONGEST + 1):
        counts: Counter[int] = Counter()
        for start in range(len(text) - length + 1):
            value = length
            for token in text[start : start + length]:
                value = (value * FACTOR + token + 1) % MODULUS
            counts[value % buckets] += 1
        found.append(counts)
    return found


__all__ = ["RSMoEReranker"]
