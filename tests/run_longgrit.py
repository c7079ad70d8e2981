# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Runs the pipeline by a settings file, in a process that tests kill: `python tests/run_longgrit.py SETTINGS.yaml`."""

import logging
import sys

from processing_pixclip.longgrit.config import read_settings
from processing_pixclip.longgrit.runner import run_pipeline


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    summary = run_pipeline(read_settings(sys.argv[1]))
    print(f"accepted {summary['accepted']}")
