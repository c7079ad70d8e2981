# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The vision tower before Transformers' model and configuration tests, as CLIP's and as EVA02's."""

import unittest

from parts_that_models_lack import NOT_OF_THIS_KIND
from tests.test_configuration_common import ConfigTester
from tests.test_modeling_common import ModelTesterMixin
from tiny_models import EVA02, VISION, random_images, random_masks, vision_config
from torch import nn

from modeling_pixclip import PixCLIPVisionConfig, PixCLIPVisionModel, PixCLIPVisionModelWithProjection


class VisionTower:
    """Sizes and inputs of a tiny tower, in the form that the mixins ask for."""

    batch_size = 3
    is_training = True
    num_hidden_layers, num_attention_heads = VISION["num_hidden_layers"], VISION["num_attention_heads"]
    hidden_size, image_size, patch_size = VISION["hidden_size"], VISION["image_size"], VISION["patch_size"]
    seq_length = 1 + (image_size // patch_size) ** 2

    def __init__(self, fields):
        self.fields = fields

    def get_config(self):
        return vision_config(**self.fields)

    def prepare_config_and_inputs_for_common(self):
        inputs = {"pixel_values": random_images(self.batch_size), "mask_values": random_masks(self.batch_size)}
        return self.get_config(), inputs


class VisionTowerTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (PixCLIPVisionModel, PixCLIPVisionModelWithProjection)
    additional_model_inputs = ["mask_values"]
    test_resize_embeddings = False
    fields = {}
    reasons = {
        **NOT_OF_THIS_KIND,
        "test_resize_embeddings=False": "no token embeddings",
        "test_resize_tokens_embeddings": "no token embeddings",
        "test_resize_embeddings_untied*": "no token embeddings",
        "test_inputs_embeds": "no token embeddings",
        "test_inputs_embeds_matches_input_ids": "no token embeddings",
        "test_model_get_set_embeddings": "the input embedding is the patch convolution, not a table",
        "test_attn_implementation_composite_models": "one configuration without parts",
        "test_can_set_attention_dynamically_composite_model": "one configuration without parts",
        "test_internal_model_config_and_subconfig_are_same": "one configuration without parts",
        "test_sdpa_can_dispatch_composite_models": "one configuration without parts",
    }

    def setUp(self):
        self.model_tester = VisionTower(self.fields)
        self.config_tester = ConfigTester(
            self,
            config_class=PixCLIPVisionConfig,
            has_text_modality=False,
            hidden_size=32,
            num_attention_heads=4,
            **self.fields,
        )

    def test_config(self):
        self.config_tester.run_common_tests()

    def test_model_get_set_embeddings(self):
        for model_class in self.all_model_classes:
            model = model_class(self.model_tester.get_config())
            self.assertIsInstance(model.get_input_embeddings(), nn.Conv2d)
            other = nn.Conv2d(3, self.model_tester.hidden_size, 8, 8)
            model.set_input_embeddings(other)
            self.assertIs(model.get_input_embeddings(), other)
            self.assertIsNone(model.get_output_embeddings())


class EVA02TowerTest(VisionTowerTest):
    fields = EVA02
