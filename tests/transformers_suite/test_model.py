"""transformers' common model tests, and our generation tests, on RSMoEModel and RSMoEForConditionalGeneration."""

import unittest
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import pytest
import torch
from transformers import initialization as init
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, MODEL_MAPPING_NAMES

from modeling_rsmoe import RSMoEConfig, RSMoEForConditionalGeneration, RSMoEModel
from modeling_rsmoe.experts_rsmoe import LowRank, RSMoEExpert

from . import source


pytestmark = pytest.mark.network


common = source.load("test_modeling_common")

# Low ids for the special tokens: a common test that makes the vocabulary smaller cuts the highest ids off the rows.
PAD, BOS, EOS, IMAGE, PROMPT, ROUTER, THEME, OBJECT, RELATION, FIRST_WORD = range(10)


class RSMoEModelTester:
    """Makes the tiny config and the rows that every common test runs on.

    Seven rows (transformers' eager-against-sdpa test takes seven), each with an image of its own: an expert first (the
    batching test compares row 0 only), then no expert, the other experts and the router; the last two are padded left.
    """

    is_training = True
    adapters = (OBJECT, None, THEME, RELATION, ROUTER, RELATION, None)
    padding = (0, 0, 0, 0, 0, 2, 3)
    pad_token_id = PAD
    num_query_tokens = 4
    words = 6
    hidden_size = 32
    num_hidden_layers = 2
    num_attention_heads = 4
    vocab_size = 99
    image_size = 16

    def __init__(self, parent: unittest.TestCase, kind: str = "lora"):
        self.parent = parent
        self.kind = kind
        self.batch_size = len(self.adapters)
        self.seq_length = max(self.padding) + self.num_query_tokens + 1 + self.words

    def get_config(self) -> RSMoEConfig:
        """A config with mixed shapes (three widths, grouped key-value heads), so that no two can be mistaken."""
        layers = {"num_hidden_layers": self.num_hidden_layers, "hidden_act": "gelu"}
        return RSMoEConfig(
            vision_config={
                "model_type": "dinov2",
                "hidden_size": 24,
                "num_attention_heads": 2,
                "image_size": self.image_size,
                "patch_size": 8,
                **layers,
            },
            qformer_config={
                "vocab_size": 50,
                "hidden_size": 16,
                "num_attention_heads": 2,
                "intermediate_size": 32,
                "max_position_embeddings": 32,
                "hidden_dropout_prob": 0.0,
                "attention_probs_dropout_prob": 0.0,
                **layers,
            },
            text_config={
                "model_type": "llama",
                "vocab_size": self.vocab_size,
                "hidden_size": self.hidden_size,
                "intermediate_size": 64,
                "num_hidden_layers": self.num_hidden_layers,
                "num_attention_heads": self.num_attention_heads,
                "num_key_value_heads": 2,
                "max_position_embeddings": 64,
                "pad_token_id": PAD,
                "bos_token_id": BOS,
                "eos_token_id": EOS,
            },
            router_config={"expert_type": "lora", "r": 2},
            expert_config={"expert_type": self.kind, "r": 3},
            num_query_tokens=self.num_query_tokens,
            image_token_id=IMAGE,
            prompt_token_id=PROMPT,
            router_token_id=ROUTER,
            expert_token_ids=[THEME, OBJECT, RELATION],
        )

    def prepare_config_and_inputs_for_common(self) -> tuple[RSMoEConfig, dict[str, torch.Tensor]]:
        rows, masks = [], []
        for adapter, pad in zip(self.adapters, self.padding):
            marks = [IMAGE] * self.num_query_tokens + ([] if adapter is None else [adapter])
            words = self.seq_length - pad - len(marks)
            rows.append([PAD] * pad + marks + torch.randint(FIRST_WORD, self.vocab_size, (words,)).tolist())
            masks.append([0] * pad + [1] * (self.seq_length - pad))
        instructions = torch.randint(1, 50, (self.batch_size, 5))
        instruction_mask = torch.ones_like(instructions)
        instruction_mask[1, 3:] = 0
        return self.get_config(), {
            "input_ids": torch.tensor(rows),
            "attention_mask": torch.tensor(masks),
            "pixel_values": torch.randn(self.batch_size, 3, self.image_size, self.image_size),
            "qformer_input_ids": instructions,
            "qformer_attention_mask": instruction_mask,
        }


def init_with_effect(self: RSMoEExpert, module: torch.nn.Module, original=RSMoEExpert._init_weights) -> None:
    """Starts B at random: at B = 0, where training starts, a row read by the wrong expert would pass every test."""
    original(self, module)
    if isinstance(module, LowRank):
        init.normal_(module.lora_B, std=0.3)


class RSMoEModelTest(common.ModelTesterMixin, common.GenerationTesterMixin, unittest.TestCase):
    all_model_classes = (RSMoEModel, RSMoEForConditionalGeneration)
    # Else the test for weights that nothing initializes looks for a copyright line of 2023 or later.
    test_can_init_all_missing_weights_before_2023 = True
    additional_model_inputs = ["pixel_values", "qformer_input_ids", "qformer_attention_mask"]
    _is_composite = True
    kind = "lora"

    @classmethod
    def setUpClass(cls):
        # The common tests tell by these names which class takes labels and which one has no head.
        for names, model_class in (
            (MODEL_MAPPING_NAMES, RSMoEModel),
            (MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, RSMoEForConditionalGeneration),
        ):
            entry = mock.patch.dict(names, {RSMoEConfig.model_type: model_class.__name__})
            entry.start()
            cls.addClassCleanup(entry.stop)

    @contextmanager
    def subTest(self, msg: object = None, **params: object) -> Iterator[None]:
        """The first that fails ends its test. pytest's own would write thousands of reports, longer than they run."""
        try:
            yield
        except Exception as error:
            error.add_note(f"in the subtest {msg} {params}")
            raise

    def setUp(self):
        self.model_tester = RSMoEModelTester(self, self.kind)
        started = mock.patch.object(RSMoEExpert, "_init_weights", init_with_effect)
        started.start()
        self.addCleanup(started.stop)
        # `test_bc_torch_dtype` writes out thousands of tensors for messages that nobody reads.
        torch.set_printoptions(threshold=4, edgeitems=1)
        self.addCleanup(torch.set_printoptions, profile="default")


class RSMoEFullExpertsModelTest(RSMoEModelTest):
    """Experts with layers of their own, on the tests that depend on the kind of expert."""

    kind = "full"


KEPT = (
    "test_batching_equivalence",
    "test_can_init_all_missing_weights",
    "test_determinism",
    "test_eager_matches_sdpa_inference_24",
    "test_inputs_embeds_matches_input_ids",
    "test_internal_model_config_and_subconfig_are_same",
    "test_resize_tokens_embeddings",
    "test_save_load",
    "test_training",
)
for name in dir(RSMoEFullExpertsModelTest):
    if (
        name.startswith("test_")
        and callable(getattr(RSMoEFullExpertsModelTest, name))
        and (not name.startswith(KEPT) and not hasattr(common.GenerationTesterMixin, name))
    ):
        setattr(RSMoEFullExpertsModelTest, name, None)
