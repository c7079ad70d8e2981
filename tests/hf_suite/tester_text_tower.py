# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The text tower before Transformers' model and configuration tests: on a bidirectional Llama, and on CLIP's text model."""

import tempfile
import unittest

from parts_that_models_lack import NOT_OF_THIS_KIND
from tests.test_configuration_common import ConfigTester
from tests.test_modeling_common import ModelTesterMixin
from tiny_models import VOCABULARY, random_tokens, text_config

from modeling_pixclip import PixCLIPTextConfig, PixCLIPTextModel
from modeling_pixclip.text_attention import VARLEN_ATTENTION


class TextTower:
    """Sizes and inputs of a tiny tower, in the form that the mixins ask for."""

    batch_size, seq_length = 3, 7
    is_training = True
    vocab_size, hidden_size, num_hidden_layers, num_attention_heads = VOCABULARY, 32, 2, 4

    def __init__(self, backbone):
        self.backbone = backbone

    def get_config(self):
        # Trained whole, because a frozen backbone gives no gradients.
        return text_config(self.backbone, backbone_training="full")

    def prepare_config_and_inputs_for_common(self):
        input_ids, attention_mask = random_tokens([self.seq_length, 4, 5])
        return self.get_config(), {"input_ids": input_ids, "attention_mask": attention_mask}


class LlamaTowerTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (PixCLIPTextModel,)
    backbone = "llama"
    _is_composite = True
    reasons = {
        **NOT_OF_THIS_KIND,
        "_is_composite=True": "the backbone is a model of its own",
        "test_inputs_embeds": "takes tokens, or pooled vectors of them (`backbone_embeds`)",
        "test_inputs_embeds_matches_input_ids": "takes tokens, or pooled vectors of them (`backbone_embeds`)",
        "test_sdpa_can_dispatch_composite_models": "one part, the backbone, where the mixin looks for two towers",
        "test_sdpa_can_dispatch_non_composite_models": "the backbone is a model of its own",
    }

    def setUp(self):
        self.model_tester = TextTower(self.backbone)
        self.config_tester = ConfigTester(self, config_class=PixCLIPTextConfig, pooling="last", projection_dim=16)

    def test_config(self):
        self.config_tester.run_common_tests()

    def test_sdpa_can_dispatch_composite_models(self):
        model = PixCLIPTextModel(self.model_tester.get_config())
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            default = PixCLIPTextModel.from_pretrained(folder).backbone
            eager = PixCLIPTextModel.from_pretrained(folder, attn_implementation="eager").backbone
        # Ours, which is sdpa but for packed texts.
        for module in default.modules():
            if hasattr(module, "config"):
                self.assertEqual(module.config._attn_implementation, VARLEN_ATTENTION)
        for module in eager.modules():
            if hasattr(module, "config"):
                self.assertEqual(module.config._attn_implementation, "eager")


class CLIPTextTowerTest(LlamaTowerTest):
    backbone = "clip_text"
