"""Which objects an image shows, and which a text mentions: a judge of single sentences [our decision].

A linear map from the ViT's features, fitted to people's object labels (`rsmoe train reranker`), gives each object's
probability. A text is read as words again, token by token, so that the model needs no tokenizer.
"""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import nn


PIECE_BYTES = 24  # of a token's text that are kept; a longer token is no word of an object
# A phrase that ends a sentence begins with one of these, and may go where what stands before has a verb of its own.
_LINK = re.compile(
    r",? \b(?:and|with|near|next to|beside|along|around|over|behind|in front of|in the middle of|on|in|at|where|"
    r"surrounded by)\b"
)
_VERB = re.compile(r"\b(?:is|are|has|have)\b")
_INCOMPLETE = re.compile(r"\b(?:is|are|has|have|of|between|both)$|\bbetween\b")


class RSMoEObjectHead(nn.Module):
    """Presence of objects in images, and mentions of them in texts.

    Args:
        width (`int`): Of the ViT's features.
        objects (`Mapping[str, Sequence[str]]`): Of each object the words that mention it, in every form.
        vocab_size (`int`): Of the LLM's tokenizer when the head was fitted.
    """

    pieces: torch.Tensor

    def __init__(self, width: int, objects: Mapping[str, Sequence[str]], vocab_size: int):
        super().__init__()
        self.names = sorted(objects)  # as config.json keeps them
        self.projection = nn.Linear(3 * width, len(objects))
        # The text of each token, as UTF-8, padded with zeros.
        self.register_buffer("pieces", torch.zeros(vocab_size, PIECE_BYTES, dtype=torch.uint8))
        self._patterns = {
            name: re.compile(rf"\b(?:{'|'.join(map(re.escape, sorted(words, key=len, reverse=True)))})\b")
            for name, words in objects.items()
        }

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """Each object's probability to be in each image.

        Args:
            pooled (`torch.FloatTensor` of shape `(num_images, 3 x vision width)`): Of `pool_image_features`.

        Returns:
            `torch.FloatTensor` of shape `(num_images, num_objects)`.
        """
        return self.projection(pooled.to(self.projection.weight)).float().sigmoid()

    def set_pieces(self, texts: Sequence[str]) -> None:
        """Learn the tokens' texts by heart, in the order of their ids."""
        for row, text in zip(self.pieces, texts, strict=True):
            value = text.encode()
            row.zero_()
            if 0 not in value and len(value) <= PIECE_BYTES:
                row[: len(value)] = torch.tensor(list(value), dtype=torch.uint8)

    def texts(self, tokens: Sequence[int]) -> list[str]:
        """The text of each token, in lower case; of one that came into the vocabulary later, nothing."""
        known = [token if token < len(self.pieces) else -1 for token in tokens]
        rows = self.pieces[[max(token, 0) for token in known]].tolist()
        return [
            bytes(filter(None, row)).decode("utf-8", "replace").lower() if token >= 0 else ""
            for token, row in zip(known, rows)
        ]

    def mentions(self, tokens: Sequence[int]) -> set[str]:
        """The objects that a text mentions."""
        text = "".join(self.texts(tokens))
        return {name for name, pattern in self._patterns.items() if pattern.search(text)}

    def supported(self, tokens: Sequence[int], absent: set[str]) -> list[int]:
        """The sentence without what an image does not show, but for its end.

        A phrase at the end goes if it alone mentions what is absent and the rest can stand: it begins at the last of a
        few linking words before that mention, and the rest has a form of "to be" or "to have" that is not its end.

        Args:
            tokens (`Sequence[int]`): Of one sentence.
            absent (`set[str]`): Objects that are likely not there.

        Returns:
            `list[int]`: all tokens where nothing is absent, a part of them, or none where the sentence cannot stand.
        """
        pieces = self.texts(tokens)
        text = "".join(pieces)
        places = [match.start() for name in absent for match in [self._patterns[name].search(text)] if match]
        if not places:
            return list(tokens)
        links = [match.start() for match in _LINK.finditer(text[: min(places)])]
        rest = text[: links[-1]].rstrip() if links else ""
        if not _VERB.search(rest) or _INCOMPLETE.search(rest):
            return []
        length, kept = 0, []
        for token, piece in zip(tokens, pieces):
            length += len(piece)
            if length > len(rest):
                break
            kept.append(token)
        return kept


__all__ = ["RSMoEObjectHead"]
