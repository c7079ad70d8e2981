# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Image processors of PixCLIP, one for each backend; in one file, so that a saved folder has the code of both."""

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_backends import PilBackend, TorchvisionBackend

from .frame_geometry import resize_by_pil
from .image_processing_base_pixclip import PixCLIPImageProcessorBase


try:
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2 import functional as tv_functional
# One that was built for another torch raises RuntimeError.
except (ImportError, RuntimeError):
    tv_functional = None


class _OneBackend:
    """A class is of one backend, which loading cannot change."""

    @classmethod
    def from_dict(cls, image_processor_dict: dict, **kwargs):
        if "backend" in kwargs:
            raise TypeError(
                f"{cls.__name__} does not take backend={kwargs['backend']!r}, as it is of one backend. Load by "
                "AutoImageProcessor, which takes it, or by the class itself: PixCLIPImageProcessorPil is that of PIL."
            )
        return super().from_dict(image_processor_dict, **kwargs)


class PixCLIPImageProcessorPil(_OneBackend, PixCLIPImageProcessorBase, PilBackend):
    """Turns images, and per image any number of region masks or boxes, into PixCLIP's ragged batch.

    Images are resampled by PIL. `PixCLIPImageProcessor` is this class where torchvision is not installed. The
    options, at construction and per call, are those of `PixCLIPImageProcessorKwargs`. Regions are flat: R regions
    over B images, `region_image_index` says whose region each is.

    Example:
        >>> import numpy as np
        >>> from processing_pixclip import PixCLIPImageProcessorPil
        >>> image_processor = PixCLIPImageProcessorPil(size={"height": 32, "width": 32})
        >>> photo = np.zeros((40, 60, 3), dtype=np.uint8)
        >>> batch = image_processor([photo, photo], boxes=[[[0, 0, 30, 20], [6, 5, 60, 40]], []], return_tensors="pt")
        >>> batch["pixel_values"].shape, batch["mask_values"].shape
        (torch.Size([2, 3, 32, 32]), torch.Size([2, 1, 32, 32]))
        >>> batch["region_image_index"], batch["region_boxes"][0]
        (tensor([0, 0]), tensor([0.0000, 0.0000, 0.5000, 0.5000]))
    """


if tv_functional is None:
    # As with the library's own: without torchvision the name means the class that does without.
    PixCLIPImageProcessor = PixCLIPImageProcessorPil
    BACKENDS = {"pil": PixCLIPImageProcessorPil}
else:

    class PixCLIPImageProcessor(_OneBackend, PixCLIPImageProcessorBase, TorchvisionBackend):
        """Turns images, and per image any number of region masks or boxes, into PixCLIP's ragged batch.

        Arguments, options, results and errors are those of `PixCLIPImageProcessorPil`, and masks and boxes are the
        same bit for bit. BICUBIC and BILINEAR are torchvision's: on photos pixels differ by at most 16 (BICUBIC) or 2
        (BILINEAR) of the 255 levels, by less than 0.3 on average over an image, and 1 in 1,000 at most by more than
        one level. The other filters are PIL's, and so are context crops inside the image, of which the filter reads
        the surroundings as well. Work is done on the CPU; there is no `device` option.

        Example:
            >>> import numpy as np
            >>> from processing_pixclip import PixCLIPImageProcessor
            >>> image_processor = PixCLIPImageProcessor(size={"height": 32, "width": 32})
            >>> photo = np.zeros((40, 60, 3), dtype=np.uint8)
            >>> image_processor.backend, image_processor(photo, return_tensors="pt")["pixel_values"].shape
            ('torchvision', torch.Size([1, 3, 32, 32]))
        """

        @staticmethod
        def _resize_image(
            image: Image.Image, size: tuple[int, int], resample: int, box: tuple[int, int, int, int]
        ) -> np.ndarray:
            interpolation = _INTERPOLATIONS.get(resample)
            if interpolation is None or box != (0, 0, *image.size):
                return resize_by_pil(image, size, resample, box)
            pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
            pixels = tv_functional.resize(pixels, list(size), interpolation, antialias=True)
            return pixels.permute(1, 2, 0).numpy()

    # Those that agree with PIL's up to rounding. Pillow 13 resizes the columns of some tall images first, torchvision
    # always the rows, and as both clip to 8 bits in between, bicubic's overshoot is then cut at other places.
    _INTERPOLATIONS = {
        Image.Resampling.BICUBIC: InterpolationMode.BICUBIC,
        Image.Resampling.BILINEAR: InterpolationMode.BILINEAR,
    }
    BACKENDS = {"torchvision": PixCLIPImageProcessor, "pil": PixCLIPImageProcessorPil}
