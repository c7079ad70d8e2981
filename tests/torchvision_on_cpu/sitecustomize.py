# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Lets PyPI's torchvision, a CUDA build, be imported beside a CPU build of torch.

Python runs this module at its start where this folder is on PYTHONPATH. torchvision declares the fake kernels of two
operators whose schemas are in its CUDA library, which does not load; declared here, resizing works, and nms does not.
"""

import torch


_library = torch.library.Library("torchvision", "DEF")
for _name in ("nms", "qnms"):
    _library.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
