# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The processor before Transformers' processor tests."""

import inspect
import tempfile
import unittest
from unittest import mock

from test_processor import byte_level_tokenizer
from tests.test_processing_common import MODALITY_TEST_SPECS, ProcessorTesterMixin

from modeling_pixclip import PixCLIPImageProcessor, PixCLIPProcessor
from processing_pixclip import PixCLIPImageProcessorKwargs
from processing_pixclip.processing_pixclip import PixCLIPTextKwargs


MODALITY_TEST_SPECS["images"]["init_time_kwargs"] = {"image_mean": 1.0}


class ProcessorTest(ProcessorTesterMixin, unittest.TestCase):
    processor_class = PixCLIPProcessor
    reasons = {
        "MODALITY_TEST_SPECS": (
            "images that an option reached are marked by pixels below 0, of a rescale factor of -1; ours has to be above "
            "0, and a mean of 1 gives such pixels too"
        ),
        "setUpClass": (
            "saving with the code beside it leaves `auto_map` on the saved object, which the library takes off a loaded "
            "one; tests/test_processor.py and tests/test_hub.py test such folders"
        ),
        "_setup_*": "a tokenizer and an image processor that need no Hub, of small size",
        "prepare_processor_dict": "the template of texts, their length and pooling are ours to give",
        "test_apply_chat_template_*": "texts are described regions, not conversations",
        "test_chat_template_*": "texts are described regions, not conversations",
        "test_get_num_multimodal_tokens_matches_processor_call*": "images make no tokens in a text",
        "test_replacement_offsets": "images make no tokens in a text",
        "test_*_videos": "images and texts only",
        "test_*_audio": "images and texts only",
        "test_args_overlap_kwargs": "an attribute that is no option is refused; the test marks by an option instead",
        "test_call_arguments_default_none": "`crops` is a switch, and `return_tensors` is 'pt' by default",
        "test_call_arguments_not_in_processor_kwargs": "`return_tensors` is an argument by name, of both parts",
        "test_processor_text_has_no_visual": "images are a flat list and need not pair with texts",
        "test_structured_kwargs_nested_from_dict_0_images": "`return_tensors` is no option of `common_kwargs`",
        "test_subprocessor_defaults_[01]_*": (
            "the processor returns tensors where its parts return arrays and lists, and strips texts"
        ),
        "test_subprocessor_defaults_preserved_by_kwargs_0_images": (
            "length and padding are the processor's: a tokenizer's own would differ between tokenizers"
        ),
    }

    @classmethod
    def setUpClass(cls):
        without_code = mock.patch.object(PixCLIPProcessor, "_auto_class", None)
        without_code.start()
        cls.addClassCleanup(without_code.stop)
        super().setUpClass()

    @classmethod
    def _setup_tokenizer(cls):
        return byte_level_tokenizer()

    @classmethod
    def _setup_image_processor(cls):
        return PixCLIPImageProcessor(size=32)

    @staticmethod
    def prepare_processor_dict():
        return {"text_template": "{text}", "text_max_length": 117, "text_pooling": "text"}

    def defaults_of_call(self):
        parameters = inspect.signature(PixCLIPProcessor.__call__).parameters
        return {name: parameter.default for name, parameter in parameters.items()}

    def test_args_overlap_kwargs(self):
        processor = self.get_processor()
        processor.image_processor.crop_scale = 2.0
        with tempfile.TemporaryDirectory() as folder:
            self.get_processor().save_pretrained(folder)
            reloaded = PixCLIPProcessor.from_pretrained(folder, image_processor=processor.image_processor)
        self.assertIs(reloaded.image_processor, processor.image_processor)

    def test_call_arguments_default_none(self):
        set_by_default = {name: value for name, value in self.defaults_of_call().items() if value is not None}
        named = {name: value for name, value in set_by_default.items() if value is not inspect.Parameter.empty}
        self.assertEqual(named, {"crops": False, "return_tensors": "pt"})

    def test_call_arguments_not_in_processor_kwargs(self):
        of_images, of_texts = PixCLIPImageProcessorKwargs.__annotations__, PixCLIPTextKwargs.__annotations__
        self.assertFalse(self.defaults_of_call().keys() & {*of_images, *of_texts})

    def test_processor_text_has_no_visual(self):
        processor = self.get_processor()
        images, texts = self.prepare_images_inputs(batch_size=2), self.prepare_text_inputs(batch_size=3)
        both, alone = processor(images=images, text=texts), processor(text=texts)
        self.assertEqual(len(both["pixel_values"]), 2)
        self.assertEqual(both["input_ids"].tolist(), alone["input_ids"].tolist())

    def test_structured_kwargs_nested_from_dict_0_images(self):
        inputs = self.get_processor()(
            images=self.prepare_images_inputs(),
            text=self.prepare_text_inputs(),
            images_kwargs={"image_mean": 1.0},
            text_kwargs={"padding": "max_length", "max_length": 76},
            return_tensors="pt",
        )
        self._check_modality_outputs(inputs, "images")
        self.assertEqual(inputs["input_ids"].shape[-1], 76)

    def test_subprocessor_defaults_0_text(self):
        processor, texts = self.get_processor(), [text.strip() for text in self.prepare_text_inputs(batch_size=2)]
        alone = self.get_component("tokenizer")(texts, padding=True)
        together = processor(text=texts)
        for name in ("input_ids", "attention_mask"):
            self.assertEqual(together[name].tolist(), alone[name])

    def test_subprocessor_defaults_1_images(self):
        processor, images = self.get_processor(), self.prepare_images_inputs(batch_size=2)
        alone = self.get_component("image_processor")(images, return_tensors="pt")
        together = processor(images=images)
        self.assertEqual(together.keys(), alone.keys())
        for name in alone:
            self.assertTrue(together[name].equal(alone[name]), name)

    def test_subprocessor_defaults_preserved_by_kwargs_0_images(self):
        components = self.prepare_components()
        components["image_processor"] = self.get_component("image_processor", image_mean=1.0)
        components["tokenizer"] = self.get_component("tokenizer", max_length=3, padding="max_length")
        processor = PixCLIPProcessor(**components, **self.prepare_processor_dict())
        text = self.prepare_text_inputs()
        inputs = processor(images=self.prepare_images_inputs(), text=text)
        self._check_modality_outputs(inputs, "images")
        self.assertEqual(inputs["input_ids"].tolist(), self.get_processor()(text=text)["input_ids"].tolist())
