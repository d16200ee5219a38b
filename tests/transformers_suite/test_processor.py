"""transformers' common processor tests on RSMoEProcessor, put together from the tiny parts of tests/tiny.py."""

import unittest
from unittest import mock

import pytest
from transformers import BertTokenizer, PreTrainedTokenizerFast
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from modeling_rsmoe import RSMoEProcessor

from ..tiny import INSTRUCTIONS, tiny_qformer_tokenizer, tiny_tokenizer
from . import source


pytestmark = pytest.mark.network


common = source.load("test_processing_common")


class RSMoEProcessorTest(common.ProcessorTesterMixin, unittest.TestCase):
    processor_class = RSMoEProcessor

    @classmethod
    def setUpClass(cls):
        # Saving adds where the code is (test_remote_code.py); the common tests expect what is in memory, and no more.
        plain = mock.patch.object(RSMoEProcessor, "_auto_class", None)
        plain.start()
        cls.addClassCleanup(plain.stop)
        super().setUpClass()

    @classmethod
    def _setup_image_processor(cls) -> BlipImageProcessorPil:
        return BlipImageProcessorPil(size={"height": 28, "width": 28})

    @classmethod
    def _setup_tokenizer(cls) -> PreTrainedTokenizerFast:
        return tiny_tokenizer()

    @classmethod
    def _setup_qformer_tokenizer(cls) -> BertTokenizer:
        return tiny_qformer_tokenizer()

    @staticmethod
    def prepare_processor_dict() -> dict:
        return {"num_query_tokens": 4, "expert_instructions": INSTRUCTIONS}
