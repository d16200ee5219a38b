"""A model that FiftyOne applies to a dataset: a caption or an answer for each image."""

from collections.abc import Sequence
from typing import Any

import fiftyone as fo
import fiftyone.core.models as fom

from modeling_rsmoe.errors_rsmoe import RSMoEError
from modeling_rsmoe.inference import Checkpoint, GenerationSettings, Prediction, Predictor
from modeling_rsmoe.prompting_rsmoe import DEFAULT_INSTRUCTION


class RSMoEModel(fom.SamplesMixin, fom.Model):
    """
    Args:
        checkpoint: that is loaded.
        prompt: an instruction or a question, asked of every image that has no prompt of its own.
        system: who speaks, as of `Predictor`.
        settings: as of `GenerationSettings`: fusion, router_mode, max_new_tokens, num_beams.
    """

    media_type = "image"
    ragged_batches = False
    transforms = None
    preprocess = False

    def __init__(
        self, checkpoint: Checkpoint, prompt: str = DEFAULT_INSTRUCTION, system: str = "full", **settings: Any
    ):
        super().__init__()
        self.prompt = prompt
        self.predictor = Predictor(checkpoint.model, checkpoint.processor, GenerationSettings(**settings), system)

    @fom.SamplesMixin.needs_fields.setter
    def needs_fields(self, fields: dict[str, str]) -> None:
        """What `apply_model` was given: `prompt_field`, the samples' field that holds each one's own prompt."""
        if unknown := sorted(fields.keys() - {"prompt_field"}):
            raise RSMoEError(
                f"apply_model got {', '.join(unknown)}; it takes prompt_field, and load_zoo_model all the rest"
            )
        self._fields = fields

    def predict(self, image: Any, sample: Any = None) -> fo.Classification:
        return self.predict_all([image], [sample])[0]

    def predict_all(self, images: Sequence[Any], samples: Sequence[Any] | None = None) -> list[fo.Classification]:
        """The text is the label; attributes are what each expert was asked and wrote.

        Args:
            images: whatever `Predictor` takes.
            samples: whose files are read in place of `images`, so that pixels and texts are those of every other door.
        """
        samples = samples or [None] * len(images)
        is_file = [getattr(sample, "media_type", None) == "image" for sample in samples]  # else a frame of a video
        sources = [sample.filepath if file else image for image, sample, file in zip(images, samples, is_file)]
        field = self.needs_fields.get("prompt_field")
        prompts = [(field and sample and sample[field]) or self.prompt for sample in samples]
        return [_label(prediction) for prediction in self.predictor.predict(sources, prompts)]


def _label(prediction: Prediction) -> fo.Classification:
    attributes = {f"router_prompt_{name}": text for name, text in prediction.router_prompts.items()}
    attributes |= {f"expert_text_{name}": text for name, text in prediction.expert_texts.items()}
    return fo.Classification(label=prediction.text, **attributes)
