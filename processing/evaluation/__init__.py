# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The field's benchmarks of region-aware image-text models: protocols, scorers, metrics."""
