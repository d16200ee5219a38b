"""A model and a processor small enough for every test: random weights, real tokenizers of bytes and letters."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import BertTokenizer, GenerationConfig, PreTrainedTokenizerFast, set_seed
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from modeling_rsmoe import RSMoEConfig, RSMoEForConditionalGeneration, RSMoEProcessor


SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEXT = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
TEXT |= {"num_key_value_heads": 2, "vocab_size": 265, "max_position_embeddings": 4096, "tie_word_embeddings": True}
TEXT |= {"bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0}
VISION = {
    "model_type": "dinov2",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
QFORMER = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 64,
}
QFORMER |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
INSTRUCTIONS = {"theme": "theme?", "object": "object?", "relation": "relation?"}


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes as tokens: 3 special tokens and 256 bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*SPECIAL, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=SPECIAL[0],
        pad_token=SPECIAL[0],
        eos_token=SPECIAL[2],
        model_max_length=512,
    )


def tiny_qformer_tokenizer() -> BertTokenizer:
    """Letters as word pieces."""
    letters = "abcdefghijklmnopqrstuvwxyz?:"
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    return BertTokenizer(vocab={token: i for i, token in enumerate(vocab)}, model_max_length=512)


def tiny_processor(num_query_tokens: int = 4, **kwargs) -> RSMoEProcessor:
    image_processor = BlipImageProcessorPil(size={"height": 28, "width": 28})
    kwargs.setdefault("expert_instructions", INSTRUCTIONS)
    return RSMoEProcessor(
        image_processor, tiny_tokenizer(), tiny_qformer_tokenizer(), num_query_tokens=num_query_tokens, **kwargs
    )


def tiny_config(**changes) -> RSMoEConfig:
    """Sub-configurations of `changes` (`text_config`, `expert_config`, ...) are merged, the rest replaces."""
    parts = {"text_config": TEXT, "vision_config": VISION, "qformer_config": QFORMER}
    parts |= {"expert_config": {"r": 4, "lora_alpha": 8}, "router_config": {"r": 2, "lora_alpha": 4}}
    merged = {name: {**part, **changes.pop(name, {})} for name, part in parts.items()}
    return RSMoEConfig(**merged, **{"num_query_tokens": 4, "sentence_end_token_ids": [17], **changes})


def tiny_model(seed: int = 0, config: RSMoEConfig | None = None) -> RSMoEForConditionalGeneration:
    """Weights are large and experts differ from the base LM, so that a wrong row shows in every output."""
    set_seed(seed)
    model = RSMoEForConditionalGeneration(config or tiny_config())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "lora" not in name:
                parameter.normal_(0, 0.2)
            elif "lora" in name:
                parameter.normal_(0, 0.3)
    # Made anew: one that transformers derives from a model's config does not keep entries of ours when it is saved.
    model.generation_config = GenerationConfig(
        pad_token_id=0, eos_token_id=2, max_new_tokens=8, suppress_tokens=list(range(259, 265))
    )
    return model.eval()


def speaking_model() -> RSMoEForConditionalGeneration:
    """One that writes small letters and spaces alone: texts that a page shows as they are."""
    model, tokenizer = tiny_model(), tiny_tokenizer()
    letters = [i for i in range(3, 259) if tokenizer.decode([i]) in set("abcdefghijklmnopqrstuvwxyz ")]
    model.generation_config.suppress_tokens = sorted({*range(265)} - {2, *letters})
    return model


def tiny_checkpoint(folder: Path, **changes) -> Path:
    """With the names that the model itself has, as assembled checkpoints."""
    tiny_model(config=tiny_config(**changes)).save_pretrained(folder, save_original_format=False)
    tiny_processor().save_pretrained(folder)
    return folder


def tiny_start(folder: Path, **changes) -> Path:
    """A checkpoint whose router and experts are the base LM, as before a training."""
    model = tiny_model(config=tiny_config(**changes))
    model.model.reset_adapters()
    model.save_pretrained(folder, save_original_format=False)
    tiny_processor().save_pretrained(folder)
    return folder


__all__ = ["speaking_model", "tiny_checkpoint", "tiny_start", "tiny_config", "tiny_model", "tiny_processor"]
