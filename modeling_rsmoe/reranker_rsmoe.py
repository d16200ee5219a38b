"""The reranker: which of several texts fits an image best, judged by the image alone [our decision].

The base LM and the experts read the same image and often say different things; nothing in them says which of it is
right. The reranker does: from the ViT's features it predicts the n-grams of the image's captions, weighted as in
CIDEr, and a text scores as much as its n-grams agree with those. It is linear and fitted in closed form
(`rsmoe train reranker`), so it costs next to nothing and is never trained by gradients.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from .errors_rsmoe import RSMoEError
from .objects_rsmoe import RSMoEObjectHead


MAX_NGRAM = 4  # tokens, as in CIDEr
# A rolling hash puts n-grams into buckets: no list of them has to be kept. Every step stays below 2**63.
HASH_FACTOR, HASH_MODULUS = 1_000_003, 2**31 - 1


class RSMoEReranker(nn.Module):
    """A linear map from image features to the n-grams of captions.

    Args:
        width (`int`): Of the ViT's features.
        rank (`int`): Of the map.
        buckets (`int`): Number of hashed n-grams.
        objects (`Mapping[str, Sequence[str]]`, *optional*):
            Of each object that it can tell to be there or not, the words that mention it. None: it judges texts by
            their n-grams alone.
        vocab_size (`int`, *optional*, defaults to 0): Of the LLM's tokenizer, which the objects' words are read by.

    Raises:
        RSMoEError: a rank above what so many features and n-grams have.
    """

    def __init__(
        self,
        width: int,
        rank: int,
        buckets: int,
        objects: Mapping[str, Sequence[str]] | None = None,
        vocab_size: int = 0,
    ):
        super().__init__()
        if rank > min(3 * width, buckets):
            raise RSMoEError(
                f"reranker_rank is {rank}; with features of width {width} and {buckets} n-grams give "
                f"{min(3 * width, buckets)} at most."
            )
        self.image_projection = nn.Linear(3 * width, rank)
        self.ngram_embeddings = nn.Embedding(buckets, rank)
        self.idf = nn.Embedding(buckets, 1)  # inverse document frequency
        self.objects = RSMoEObjectHead(width, objects, vocab_size) if objects else None
        self.requires_grad_(False)

    def forward(self, image_embeds: torch.Tensor, texts: Sequence[Sequence[Sequence[int]]]) -> list[torch.Tensor]:
        """How well each text fits its image: about the share of the n-grams of its captions that it has.

        Args:
            image_embeds (`torch.FloatTensor` of shape `(num_images, patches, vision width)`): Of `encode_image`.
            texts (`Sequence[Sequence[Sequence[int]]]`):
                For each image any number of texts, each as token ids without special tokens.

        Returns:
            `list[torch.FloatTensor]`: for each image the scores of its texts, shape `(num_texts,)`, in float32.
        """
        pooled = pool_image_features(image_embeds).to(self.image_projection.weight)
        predicted_ngrams = self.image_projection(pooled).float()  # [num_images, rank]
        return [
            torch.stack([self.embed(text) @ image_ngrams for text in image_texts])
            for image_ngrams, image_texts in zip(predicted_ngrams, texts)
        ]

    def embed(self, text: Sequence[int]) -> torch.Tensor:
        """A text's n-grams as a vector (rank), in float32; a product of two texts' vectors is the mean of their
        cosines over the lengths."""
        buckets, weights = self.weigh(text)
        if not buckets:
            return self.ngram_embeddings.weight.new_zeros(self.ngram_embeddings.embedding_dim, dtype=torch.float32)
        device = self.ngram_embeddings.weight.device
        embeddings = self.ngram_embeddings(torch.tensor(buckets, device=device)).float()
        return torch.tensor(weights, device=device) @ embeddings

    def weigh_token(self, token: int) -> float:
        """How rare captions with the token are: its inverse document frequency."""
        (bucket,) = hashed_ngrams([token], self.idf.num_embeddings)[0]
        return float(self.idf.weight[bucket, 0])

    def weigh(self, text: Sequence[int]) -> tuple[list[int], list[float]]:
        """Buckets of the text's n-grams and their tf-idf weights, of unit length for each length of n-grams."""
        buckets: list[int] = []
        weights: list[float] = []
        for counts in hashed_ngrams(text, self.ngram_embeddings.num_embeddings):
            idf = self.idf.weight[list(counts), 0].tolist()
            tf_idf = [count * rarity for count, rarity in zip(counts.values(), idf)]
            norm = math.sqrt(MAX_NGRAM * sum(weight**2 for weight in tf_idf))
            if norm:
                buckets += counts
                weights += [weight / norm for weight in tf_idf]
        return buckets, weights


def pool_image_features(image_embeds: torch.Tensor) -> torch.Tensor:
    """First token (of most ViTs the class token), mean and spread of all tokens: (num_images, 3 x vision width)."""
    values = image_embeds.float()
    return torch.cat([values[:, 0], values.mean(1), values.std(1, correction=0)], dim=1)


def hashed_ngrams(text: Sequence[int], buckets: int) -> list[Counter[int]]:
    """For each length from 1 to `MAX_NGRAM` how often the text's n-grams fall into each bucket."""
    found = []
    for length in range(1, MAX_NGRAM + 1):
        counts: Counter[int] = Counter()
        for start in range(len(text) - length + 1):
            value = length
            for token in text[start : start + length]:
                value = (value * HASH_FACTOR + token + 1) % HASH_MODULUS
            counts[value % buckets] += 1
        found.append(counts)
    return found


__all__ = ["RSMoEReranker"]
