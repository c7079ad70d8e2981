# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The whole model, with and without its objective, before Transformers' model and configuration tests."""

import tempfile
import unittest

from parts_that_models_lack import NOT_OF_THIS_KIND
from tests.test_configuration_common import ConfigTester
from tests.test_modeling_common import ModelTesterMixin
from tiny_models import VISION, VOCABULARY, pixclip_config, random_images, random_masks, random_tokens

from modeling_pixclip import PixCLIPConfig, PixCLIPForPreTraining, PixCLIPModel


class CompositeConfigTester(ConfigTester):
    def create_and_test_config_from_pretrained_custom_kwargs(self):
        config = self.parent.model_tester.get_config()
        expected = config.to_dict()
        expected["text_config"]["backbone_config"]["vocab_size"] = 20
        with tempfile.TemporaryDirectory() as folder:
            config.save_pretrained(folder)
            reloaded = self.config_class.from_pretrained(folder, text_config={"vocab_size": 20}).to_dict()
        # What saving adds.
        expected["auto_map"] = reloaded["auto_map"]
        expected["transformers_version"] = reloaded["transformers_version"]
        self.parent.assertEqual(reloaded, expected)


class BothTowers:
    """Sizes and inputs of a tiny model, in the form that the mixins ask for."""

    batch_size, seq_length = 3, 7
    is_training = True
    vocab_size, hidden_size, num_hidden_layers, num_attention_heads = VOCABULARY, 32, 2, 4
    image_seq_length = 1 + (VISION["image_size"] // VISION["patch_size"]) ** 2

    def get_config(self):
        # Trained whole, because a frozen backbone gives no gradients.
        return pixclip_config(text={"backbone_training": "full"})

    def prepare_config_and_inputs_for_common(self):
        input_ids, attention_mask = random_tokens([self.seq_length, 4, 5])
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "pixel_values": random_images(self.batch_size),
            "mask_values": random_masks(self.batch_size),
        }
        return self.get_config(), inputs


class PixCLIPModelTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (PixCLIPModel,)
    additional_model_inputs = ["attention_mask", "pixel_values", "mask_values"]
    _is_composite = True
    config_tester_class = CompositeConfigTester
    reasons = {
        **NOT_OF_THIS_KIND,
        "CompositeConfigTester.create_and_test_config_from_pretrained_custom_kwargs": (
            "the vocabulary is the backbone's, one level deeper"
        ),
        "_is_composite=True": "two towers",
        "test_attention_outputs": "they are in the output of each tower, as CLIP's",
        "test_hidden_states_output": "they are in the output of each tower, as CLIP's",
        "test_inputs_embeds": "takes tokens, or pooled vectors of them (`backbone_embeds`)",
        "test_inputs_embeds_matches_input_ids": "takes tokens, or pooled vectors of them (`backbone_embeds`)",
        "test_sdpa_can_dispatch_non_composite_models": "two towers",
        "test_retain_grad_hidden_states_attentions": "they are in the output of each tower, as CLIP's",
    }

    def setUp(self):
        self.model_tester = BothTowers()
        self.config_tester = self.config_tester_class(
            self,
            config_class=PixCLIPConfig,
            has_text_modality=False,
            common_properties=["projection_dim", "logit_scale_init_value"],
            projection_dim=16,
        )

    def test_config(self):
        self.config_tester.run_common_tests()

    def outputs_of_towers(self, asked_by_config):
        """Per class, the outputs of both towers with the lengths of their rows; everything else is asked for."""
        asked = {"output_hidden_states": True, "output_attentions": True}
        for model_class in self.all_model_classes:
            config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
            if asked_by_config:
                for name in asked:
                    setattr(config, name, True)
                    self._set_subconfig_attributes(config, name, True)
            else:
                inputs.update(asked)
            model = model_class._from_config(config, attn_implementation="eager").eval()
            outputs = model(**self._prepare_for_class(inputs, model_class))
            yield outputs, outputs.text_model_output, self.model_tester.seq_length
            yield outputs, outputs.vision_model_output, self.model_tester.image_seq_length

    def test_hidden_states_output(self):
        for asked_by_config in (False, True):
            for _, tower, length in self.outputs_of_towers(asked_by_config):
                self.assertEqual(len(tower.hidden_states), self.model_tester.num_hidden_layers + 1)
                for states in tower.hidden_states:
                    self.assertEqual(states.shape, (3, length, self.model_tester.hidden_size))

    def test_attention_outputs(self):
        for asked_by_config in (False, True):
            for _, tower, length in self.outputs_of_towers(asked_by_config):
                self.assertEqual(len(tower.attentions), self.model_tester.num_hidden_layers)
                for weights in tower.attentions:
                    self.assertEqual(weights.shape, (3, self.model_tester.num_attention_heads, length, length))

    def test_retain_grad_hidden_states_attentions(self):
        for outputs, tower, _ in self.outputs_of_towers(asked_by_config=True):
            kept = [tower.hidden_states[0], tower.attentions[0]]
            for tensor in kept:
                tensor.retain_grad()
            outputs.logits_per_image.flatten()[0].backward(retain_graph=True)
            for tensor in kept:
                self.assertIsNotNone(tensor.grad)


class PixCLIPForPreTrainingTest(PixCLIPModelTest):
    all_model_classes = (PixCLIPForPreTraining,)
    reasons = {
        **PixCLIPModelTest.reasons,
        "_prepare_for_class": "the loss is of crops, which are its labels; without them it is not asked for (`return_loss`)",
        "test_inputs_embeds_matches_input_ids": (
            "takes tokens, or pooled vectors of them (`backbone_embeds`); the mixin passes over all but base models, so that "
            "its test would pass without a look at this one"
        ),
    }

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        if not return_labels:
            return {**inputs, "return_loss": False}
        crops = {"crop_pixel_values": random_images(3, seed=1), "crop_mask_values": random_masks(3, seed=1)}
        return {**inputs, **crops}

    def test_inputs_embeds_matches_input_ids(self):
        self.skipTest(self.reasons["test_inputs_embeds_matches_input_ids"])
