"""What `generate` returned, as texts."""

import math
from typing import Any

import torch

from .errors_rsmoe import RSMoEError


OTHER_WRITERS = ("base LM", "rewriting")  # of a paragraph's sentences, after the experts


class RSMoEPostProcessingMixin:
    """The texts of a generation; of the processor that this is mixed into."""

    tokenizer: Any
    experts: list[str]

    def post_process_generation(self, outputs) -> list[dict[str, Any]]:
        """The texts of a generation.

        Args:
            outputs ([`RSMoEGenerateOutput`]):
                Of `generate(..., return_dict_in_generate=True)`.

        Returns:
            `list[dict]`: for each text `{"text": str, "router_prompts": {expert: str}, "expert_texts": {expert:
            str}}`; of a paragraph also `"sentences"`, a list of `{"text": str, "writer": str}`, with an expert's name,
            `"base LM"` or `"rewriting"` as the writer. Of a model that was fitted to say how sure it is, also
            `"confidence"` (None for an empty text) and `"expert_confidences"`, and each sentence has its own.

        Raises:
            RSMoEError: outputs that router and experts had no part in.
        """
        if getattr(outputs, "expert_sequences", None) is None:
            raise RSMoEError(
                "these outputs hold no expert texts: they are sequences alone (give generate "
                "return_dict_in_generate=True), or come of inputs without expert inputs, which the base LM or one "
                "expert read alone: decode their new tokens by processor.batch_decode."
            )
        texts = self.tokenizer.batch_decode(outputs.sequences[:, outputs.prompt_length :], skip_special_tokens=True)
        results = []
        for index, text in enumerate(texts):
            router_index = index * len(outputs.router_prompts) // len(texts)
            expert_index = index * len(outputs.expert_sequences) // len(texts)
            results.append(
                {
                    "text": text.strip(),
                    "router_prompts": self.decode_by_expert(outputs.router_prompts[router_index]),
                    "expert_texts": self.decode_by_expert(outputs.expert_sequences[expert_index]),
                }
            )
            if sentences := self._decode_sentences(outputs, index):
                results[-1]["sentences"] = sentences
            if getattr(outputs, "confidences", None) is not None:
                (results[-1]["confidence"],) = _known(outputs.confidences[index : index + 1])
                of_experts = _known(outputs.expert_confidences[expert_index])
                results[-1]["expert_confidences"] = dict(zip(self.experts, of_experts))
        return results

    def _decode_sentences(self, outputs, index: int) -> list[dict[str, Any]]:
        texts = self.tokenizer.batch_decode(outputs.sentences[index], skip_special_tokens=True)
        writers = [*self.experts, *OTHER_WRITERS]
        decoded: list[dict[str, Any]] = [
            {"text": text.strip(), "writer": writers[writer]}
            for text, writer in zip(texts, outputs.sentence_writers[index].tolist())
            if writer >= 0
        ]
        if getattr(outputs, "confidences", None) is not None:
            for sentence, value in zip(decoded, _known(outputs.sentence_confidences[index])):
                sentence["confidence"] = value
        return decoded

    def decode_by_expert(self, ids) -> dict[str, str]:
        """Texts by the experts' names.

        Args:
            ids (`torch.LongTensor` of shape `(num_experts, sequence_length)`):
                Router prompts or expert texts of one image.
        """
        texts = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return {name: text.strip() for name, text in zip(self.experts, texts)}


def _known(values: torch.Tensor) -> list[float | None]:
    """Confidences in four digits, None for a text that has none."""
    return [None if math.isnan(value) else round(value, 4) for value in values.tolist()]


__all__: list[str] = []
