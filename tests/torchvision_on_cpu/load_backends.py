# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Loads folders by remote code where PixCLIP cannot be imported, and says which backend came out as JSON.

    python load_backends.py FOLDER...

With or without torchvision; run by test_image_processing_torchvision.py.
"""

import json
import sys

import numpy as np


class Blocker:
    """First of the import finders, so that neither an installed package nor its editable finder is asked."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("modeling_pixclip", "processing_pixclip"):
            raise ModuleNotFoundError(f"{name} is not installed here", name=name)


def main(folders):
    sys.meta_path.insert(0, Blocker())
    from transformers import AutoImageProcessor, AutoProcessor

    photo = np.arange(40 * 60 * 3, dtype=np.uint32).reshape(40, 60, 3).astype(np.uint8)
    found = {}
    for folder in folders:
        for auto in (AutoImageProcessor, AutoProcessor):
            for backend in (None, "torchvision", "pil"):
                loaded = auto.from_pretrained(folder, trust_remote_code=True, backend=backend)
                image_processor = getattr(loaded, "image_processor", loaded)
                assert type(image_processor).__module__.startswith("transformers_modules."), type(image_processor)
                batch = image_processor(photo, boxes=[4, 5, 30, 20], crops=True)
                found[f"{folder} {auto.__name__} {backend}"] = {
                    "class": type(image_processor).__name__,
                    "backend": image_processor.backend,
                    "masks": float(batch["mask_values"].sum() + batch["crop_mask_values"].sum()),
                    "pixels": float(batch["pixel_values"].sum() + batch["crop_pixel_values"].sum()),
                }
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
