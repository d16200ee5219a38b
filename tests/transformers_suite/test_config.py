"""transformers' common config tests on our config classes."""

import unittest

import pytest

from modeling_rsmoe import RSMoEConfig, RSMoEEncoderConfig, RSMoEExpertConfig, RSMoERouterConfig

from . import source
from .test_model import RSMoEModelTester


pytestmark = pytest.mark.network


common = source.load("test_configuration_common")


FIELDS = {"expert_type": "full", "r": 4, "lora_alpha": 8.0, "target_modules": ["q_proj"]}


class RSMoEConfigTest(unittest.TestCase):
    def setUp(self):
        self.model_tester = RSMoEModelTester(self)

    def test_config(self):
        """The composite config; `get_config` of the model tester gives the values that are not the defaults."""
        common.ConfigTester(self, RSMoEConfig, has_text_modality=False, num_query_tokens=8).run_common_tests()


class RSMoEEncoderConfigTest(RSMoEConfigTest):
    def test_config(self):
        common.ConfigTester(self, RSMoEEncoderConfig, has_text_modality=False, num_query_tokens=8).run_common_tests()


class RSMoEExpertConfigTest(unittest.TestCase):
    def test_config(self):
        tester = common.ConfigTester(self, RSMoEExpertConfig, common_properties=[], has_text_modality=False, **FIELDS)
        tester.run_common_tests()


class RSMoERouterConfigTest(unittest.TestCase):
    def test_config(self):
        tester = common.ConfigTester(self, RSMoERouterConfig, common_properties=[], has_text_modality=False, **FIELDS)
        tester.run_common_tests()
