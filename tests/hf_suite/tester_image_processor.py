# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The image processor before Transformers' image processor tests, on PIL and, where there is one, on torchvision."""

import subprocess
import sys
import tempfile
import unittest

import numpy as np
from tests.test_image_processing_common import ImageProcessingTester, ImageProcessingTestMixin

from processing_pixclip import PixCLIPImageProcessorKwargs
from processing_pixclip.image_processing_pixclip import BACKENDS


WITHOUT_TORCHVISION = """
import sys
sys.modules["torchvision"] = None
import numpy as np
from transformers import AutoImageProcessor
from processing_pixclip import PixCLIPImageProcessorPil

processor = AutoImageProcessor.from_pretrained(sys.argv[1], backend="pil")
assert type(processor) is PixCLIPImageProcessorPil, type(processor)
image = np.arange(30 * 40 * 3, dtype=np.uint8).reshape(30, 40, 3)
np.save(sys.argv[1] + "/pixels.npy", processor(image)["pixel_values"])
"""


class PixCLIPImages(ImageProcessingTester):
    def __init__(self, parent, **kwargs):
        super().__init__(parent, size={"height": 20, "width": 18}, **kwargs)

    def _get_image_processing_classes(self):
        return BACKENDS


class ImageProcessorTest(ImageProcessingTestMixin, unittest.TestCase):
    image_processor_tester_class = PixCLIPImages
    reasons = {
        "PixCLIPImages.__init__": "a size of our own, with unequal sides",
        "PixCLIPImages._get_image_processing_classes": "the library's way reads them off its own table of models",
        "test_call_numpy_4_channels": "models take three channels; a fourth is alpha and dropped, even if not asked for",
        "test_fast_image_processor_explicit_none_preserved": "a switch is True or False; None is refused",
        "test_image_processor_preprocess_arguments": "unknown arguments are a TypeError, for which the mixin has no test",
        "test_override_instance_attributes_does_not_affect_other_instances": (
            "the mixin looks for an `image_mean` that is a list; ours is a tuple, as no list can be changed by accident"
        ),
        "test_pil_can_*_without_torchvision": "the mixin imports `transformers.models`; our package registers its own",
        "test_valid_kwargs_set": "the options are in a module of their own, which both backends share",
    }

    def processors(self):
        return [backend(**self.image_processor_dict) for backend in self.image_processing_classes.values()]

    def test_call_numpy_4_channels(self):
        tester = self.image_processor_tester
        tester.num_channels = 4
        images = tester.prepare_image_inputs(numpify=True)
        tester.num_channels = 3
        for processor in self.processors():
            for given in (images[0], images):
                pixels = processor(given, input_data_format="channels_last", return_tensors="pt")["pixel_values"]
                count = len(given) if isinstance(given, list) else 1
                self.assertEqual(tuple(pixels.shape), (count, *tester.expected_output_image_shape(images)))

    def test_fast_image_processor_explicit_none_preserved(self):
        for backend in self.image_processing_classes.values():
            for name in ("do_resize", "do_rescale", "do_normalize"):
                with self.assertRaisesRegex(ValueError, f"{name} is None; accepted"):
                    backend(**self.image_processor_dict, **{name: None})

    def test_override_instance_attributes_does_not_affect_other_instances(self):
        for backend in self.image_processing_classes.values():
            changed, other = backend(), backend()
            before = dict(other.size)
            changed.size["height"] = 7
            self.assertEqual(dict(other.size), before)
            self.assertIsInstance(other.image_mean, tuple)

    def test_image_processor_preprocess_arguments(self):
        for processor in self.processors():
            with self.assertRaisesRegex(TypeError, "unknown option extra_argument"):
                processor(self.image_processor_tester.prepare_image_inputs(), extra_argument=True)

    def load_and_run_without_torchvision(self):
        processor = self.image_processing_classes["pil"](**self.image_processor_dict)
        image = np.arange(30 * 40 * 3, dtype=np.uint8).reshape(30, 40, 3)
        with tempfile.TemporaryDirectory() as folder:
            processor.save_pretrained(folder)
            subprocess.run([sys.executable, "-c", WITHOUT_TORCHVISION, folder], check=True)
            found = np.load(f"{folder}/pixels.npy")
        np.testing.assert_array_equal(found, processor(image)["pixel_values"])

    def test_pil_can_load_without_torchvision(self):
        self.load_and_run_without_torchvision()

    def test_pil_can_run_without_torchvision(self):
        self.load_and_run_without_torchvision()

    def test_valid_kwargs_set(self):
        for processor in self.processors():
            self.assertIs(processor.valid_kwargs, PixCLIPImageProcessorKwargs)
