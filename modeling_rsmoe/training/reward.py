"""Self-critical training: the base LM captions each image several times and learns which of its captions are better.

[our decision] The paper trains on references alone. The reward of a caption is its CIDEr-D, with the end of the text
as a word so that a caption may not stop anywhere; where people have labelled the image's objects, it loses some for
what it mentions and they did not see. The advantage of a caption is its reward above the mean of the image's others
(Luo, "A Better Variant of Self-Critical Sequence Training", 2020), and weighs its cross-entropy.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from ..errors_rsmoe import RSMoEError
from ..evaluation.objects import ObjectLabels, mentions
from .examples import ExampleCollator
from .settings import Recipe
from .trainer import ExampleTrainer


MAX_NGRAM = 4
LENGTH_SPREAD = 6.0  # words; CIDEr-D's penalty for another length
END = "<end>"
EXTRA_TOKENS = 8  # that a caption may have more than the longest reference of its batch

_Counts = Counter[tuple[str, ...]]
_Weights = dict[tuple[str, ...], float]


class CaptionReward:
    """How good captions are, by their image's references and its object labels.

    Args:
        references: the training captions, image by image: they say how rare an n-gram is.
        labels: of those images that have some.
        object_penalty: taken off for each mentioned object that the labels say is absent.
    """

    def __init__(
        self,
        references: Iterable[Sequence[str]],
        labels: Mapping[Path, ObjectLabels] | None = None,
        object_penalty: float = 0.0,
    ):
        self.labels, self.object_penalty = labels or {}, object_penalty
        self._images, self._frequency = 0, _Counts()
        for captions in references:
            self._images += 1
            self._frequency.update(set(chain.from_iterable(map(_ngrams, captions))))

    def __call__(self, texts: Sequence[str], references: Sequence[str], image: Path) -> list[float]:
        """The reward of each text: CIDEr-D, of 0 to 10, less the penalty.

        Args:
            texts: about one image.
            references: of the image; a repeated one counts as often.
            image: as in the labels.
        """
        weighed = [self._weigh(_ngrams(text)) for text in references]
        return [self._cider_d(text, weighed) - self._penalty(text, image) for text in texts]

    def _cider_d(self, text: str, references: Sequence[tuple[_Weights, list[float], int]]) -> float:
        weights, norms, length = self._weigh(_ngrams(text))
        total = 0.0
        for others, other_norms, other_length in references:
            products = [0.0] * MAX_NGRAM
            for gram, weight in weights.items():
                other = others.get(gram, 0.0)
                products[len(gram) - 1] += min(weight, other) * other
            nearness = math.exp(-((length - other_length) ** 2) / (2 * LENGTH_SPREAD**2))
            cosines = (product / (a * b) for product, a, b in zip(products, norms, other_norms) if a and b)
            total += nearness * sum(cosines)
        return 10 * total / MAX_NGRAM / max(1, len(references))

    def _weigh(self, counts: _Counts) -> tuple[_Weights, list[float], int]:
        """The tf-idf weight of each n-gram, the norms of each length, and the words beyond the first."""
        rarest = math.log(max(1, self._images))
        weights = {gram: n * (rarest - math.log(max(1, self._frequency[gram]))) for gram, n in counts.items()}
        squares: defaultdict[int, float] = defaultdict(float)
        for gram, weight in weights.items():
            squares[len(gram)] += weight**2
        norms = [math.sqrt(squares[n]) for n in range(1, MAX_NGRAM + 1)]
        return weights, norms, sum(n for gram, n in counts.items() if len(gram) == 2)

    def _penalty(self, text: str, image: Path) -> float:
        labels = self.labels.get(image)
        if not self.object_penalty or labels is None:
            return 0.0
        return self.object_penalty * len(mentions(text, labels.absent))


def _ngrams(text: str) -> _Counts:
    words = [*text.lower().replace(".", " ").replace(",", " ").split(), END]
    return _Counts(tuple(words[i : i + n]) for n in range(1, MAX_NGRAM + 1) for i in range(len(words) - n + 1))


def advantages(rewards: Sequence[float]) -> list[float]:
    """Of each caption of an image: its reward above the mean of the others."""
    count, total = len(rewards), sum(rewards)
    return [reward - (total - reward) / (count - 1) for reward in rewards]


class RewardTrainer(ExampleTrainer):
    """Examples of captions are learned by reward, all others by their completions, and each counts the same.

    The val split's loss is that of references, so that it can be compared with other trainings'. The log has the mean
    reward.

    Args:
        reward: of the captions.
        recipe: `reward_samples` says how many captions of an image are compared.
        data_collator: makes batches of examples.
        **kwargs: of `ExampleTrainer`.

    Raises:
        RSMoEError: the model is spread over devices.
    """

    def __init__(
        self, *args: Any, reward: CaptionReward, recipe: Recipe, data_collator: ExampleCollator, **kwargs: Any
    ):
        recipe = replace(recipe, example_weight=1.0)  # advantages are of whole captions
        super().__init__(*args, recipe=recipe, data_collator=data_collator, **kwargs)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise RSMoEError(
                "caption_loss: reward writes captions between the steps, which a model that is spread by FSDP or "
                "DeepSpeed cannot: train without them, so that each process has the whole model"
            )
        self.reward, self.collator = reward, data_collator
        self.data_collator = _as_they_are

    def count_items(self, batches: list[dict[str, Any]], device: torch.device) -> torch.Tensor | None:
        """[examples, examples] of the batches of one step, over all processes."""
        if not batches:
            return None
        count = sum(len(batch["examples"]) for batch in batches)
        return self.accelerator.gather(torch.tensor([[count, count]], device=device)).sum(0)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        examples = self._with_own_captions(inputs["examples"])
        return super().training_step(model, self.collator(examples), *args, **kwargs)

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        return super().prediction_step(model, self.collator(inputs["examples"]), *args, **kwargs)

    def _with_own_captions(self, examples: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The examples, with what the base LM writes and its advantages in place of an image's captions."""
        captions = [example for example in examples if example["kind"] == "caption"]
        others = [example for example in examples if example["kind"] != "caption"]
        written = self._write(captions) if captions else []
        return [*map(self._rewarded, captions, written), *others]

    def _rewarded(self, example: dict[str, Any], texts: list[str]) -> dict[str, Any]:
        rewards = self.reward(texts, example["completions"], Path(example["image"]))
        self.note("reward", sum(rewards) / len(rewards))
        return {**example, "completions": texts, "weights": [value / len(texts) for value in advantages(rewards)]}

    @torch.no_grad()
    def _write(self, examples: Sequence[dict[str, Any]]) -> list[list[str]]:
        """Several captions of each example's image, drawn from the base LM as it is now."""
        trained: Any = cast(Any, self).accelerator.unwrap_model(cast(Any, self).model)
        model = trained.get_base_model() if hasattr(trained, "get_base_model") else trained
        tokenizer, count = self.collator.processor.tokenizer, cast(Recipe, self.recipe).reward_samples
        inputs = {name: value.to(model.device) for name, value in self.collator.prompts(examples).items()}
        completions = list(chain.from_iterable(example["completions"] for example in examples))
        longest = max(map(len, tokenizer(completions, add_special_tokens=False)["input_ids"]))
        trained.eval()
        with cast(Any, self).accelerator.autocast(), _frozen_in_bfloat16(model, cast(Any, self).args.bf16):
            ids = model.generate(
                **inputs,
                do_sample=True,
                top_k=0,
                num_return_sequences=count,
                max_new_tokens=longest + EXTRA_TOKENS,
            )
        trained.train()
        texts = tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        texts = [text.strip() for text in texts]
        return [texts[start : start + count] for start in range(0, len(texts), count)]


@contextmanager
def _frozen_in_bfloat16(model: nn.Module, wanted: bool) -> Iterator[None]:
    """Within, the matrices that do not learn are in half precision: autocast would cast them anew at each token."""
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad and parameter.ndim == 2]
    kept = [parameter.data for parameter in frozen] if wanted else []
    for parameter, value in zip(frozen, kept):
        parameter.data = value.to(torch.bfloat16)
    try:
        yield
    finally:
        for parameter, value in zip(frozen, kept):
            parameter.data = value


def _as_they_are(examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {"examples": list(examples)}
