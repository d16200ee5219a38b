"""Vision-language encoder: a frozen ViT, an instruction-aware Q-Former and a projection to the LLM's width [paper]."""

import torch
from torch import nn
from transformers import AutoModel
from transformers.models.instructblip.configuration_instructblip import InstructBlipVisionConfig
from transformers.models.instructblip.modeling_instructblip import InstructBlipQFormerModel, InstructBlipVisionModel

from .base_rsmoe import RSMoEPreTrainedModel
from .configuration_rsmoe import RSMoEConfig, RSMoEEncoderConfig


class RSMoEVisionLanguageEncoder(RSMoEPreTrainedModel):
    """Images and the instructions they are read under -> `num_query_tokens` features of the LLM's width for each
    image.

    Equal to InstructBLIP's encoder: `projection(qformer(queries, instruction, vision_model(pixels)))` [paper].
    """

    config_class = RSMoEEncoderConfig
    base_model_prefix = ""
    main_input_name = "pixel_values"

    def __init__(self, config: RSMoEConfig):
        super().__init__(config)
        # AutoModel does not know InstructBLIP's ViT on its own.
        is_instructblip = config.vision_config.model_type == InstructBlipVisionConfig.model_type
        from_config = InstructBlipVisionModel._from_config if is_instructblip else AutoModel.from_config
        self.vision_model = from_config(config.vision_config)
        self.qformer = InstructBlipQFormerModel._from_config(config.qformer_config)
        # An embedding rather than a bare parameter: PEFT's `modules_to_save` takes modules only.
        self.query_tokens = nn.Embedding(config.num_query_tokens, config.qformer_config.hidden_size)
        self.projection = nn.Linear(config.qformer_config.hidden_size, config.text_config.hidden_size)
        for name, parameter in self.vision_model.named_parameters():
            if name.endswith("mask_token"):  # DINOv2's, for its pretraining only: it never gets a gradient
                parameter.requires_grad_(False)
        self.post_init()

    def config_to_save(self) -> RSMoEEncoderConfig:
        return RSMoEEncoderConfig.from_dict({**self.config.to_dict(), "model_type": RSMoEEncoderConfig.model_type})

    def train(self, mode: bool = True):
        """Frozen parts stay in evaluation mode: a frozen part with dropout would give other features at every step."""
        super().train(mode)
        for part in (self.vision_model, self.qformer):
            if not any(parameter.requires_grad for parameter in part.parameters()):
                part.eval()
        return self

    def encode_image(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Patch features of the ViT, before any instruction is known: [images, patches (+ CLS), vision width].

        Args:
            pixel_values (`torch.Tensor` of shape `(images, 3, height, width)`): as the image processor makes them.
        """
        return self.vision_model(pixel_values=pixel_values.to(self.vision_model.dtype)).last_hidden_state

    def forward(self, *args, **kwargs) -> torch.Tensor:
        """Arguments as of `query_states` -> `(images, num_query_tokens, LLM width)`."""
        hidden = self.query_states(*args, **kwargs)
        return self.projection(hidden.to(self.projection.weight.dtype))

    def query_states(
        self,
        pixel_values: torch.Tensor | None = None,
        image_embeds: torch.Tensor | None = None,
        qformer_input_ids: torch.LongTensor | None = None,
        qformer_attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """What the Q-Former's queries read, before the projection to the LLM's width.

        Args:
            pixel_values (`torch.Tensor` of shape `(images, 3, height, width)`, *optional*): images.
            image_embeds (`torch.Tensor` of shape `(images, patches, vision width)`, *optional*):
                Output of `encode_image` in place of pixels.
            qformer_input_ids (`torch.LongTensor` of shape `(images, tokens)`, *optional*):
                The instruction that each image is read under. Without it the queries read the image alone.
            qformer_attention_mask (`torch.Tensor` of shape `(images, tokens)`, *optional*): 1 for its real tokens.

        Returns:
            `torch.Tensor` of shape `(images, num_query_tokens, Q-Former width)`.
        """
        if (pixel_values is None) == (image_embeds is None):
            raise ValueError("Give exactly one of `pixel_values` and `image_embeds`.")
        if pixel_values is not None:
            image_embeds = self.encode_image(pixel_values)
        assert image_embeds is not None
        images = image_embeds.shape[0]
        if qformer_input_ids is not None and qformer_input_ids.shape[0] != images:
            raise ValueError(
                f"qformer_input_ids has {qformer_input_ids.shape[0]} instructions for {images} images; give one for "
                "each image."
            )
        width = self.config.vision_config.hidden_size
        if image_embeds.ndim != 3 or image_embeds.shape[-1] != width:
            raise ValueError(
                f"image_embeds has shape {tuple(image_embeds.shape)}; expected [images, patches, {width}] from "
                "`encode_image`."
            )
        queries = self.query_tokens.weight.unsqueeze(0).expand(images, -1, -1)  # [images, queries, Q-Former width]
        attention_mask = queries.new_ones(queries.shape[:2], dtype=torch.long)
        position_ids = None
        if qformer_input_ids is not None:
            if qformer_attention_mask is None:
                qformer_attention_mask = torch.ones_like(qformer_input_ids)
            # Of the real tokens, wherever the padding is: transformers' pipelines and TRL pad on the left.
            position_ids = (qformer_attention_mask.long().cumsum(-1) - 1).clamp(min=0)
            attention_mask = torch.cat([attention_mask, qformer_attention_mask.to(attention_mask)], dim=1)
        hidden = self.qformer(
            input_ids=qformer_input_ids,
            position_ids=position_ids,
            attention_mask=attention_mask,
            query_embeds=queries,
            encoder_hidden_states=image_embeds.to(self.qformer.dtype),
        ).last_hidden_state  # [images, queries + tokens, Q-Former width]
        return hidden[:, : queries.shape[1]]


__all__ = ["RSMoEVisionLanguageEncoder"]
