# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
import pytest
import torch


@pytest.fixture(autouse=True)
def seeded():
    """Fresh models and inputs are the same in every run, whatever ran before in the same process."""
    torch.manual_seed(0)
