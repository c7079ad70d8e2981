# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Imported first: says which extra is missing, rather than which module."""

from importlib.util import find_spec


REQUIRED = ("imagehash", "jinja2", "openai", "py3langid", "pydantic", "tenacity", "yaml")


def _is_there(name: str) -> bool:
    try:
        return find_spec(name) is not None
    # Of a module that was taken out of `sys.modules` on purpose.
    except ValueError:
        return False


missing = [name for name in REQUIRED if not _is_there(name)]
if missing:
    raise ImportError(
        f"processing_pixclip.longgrit needs {', '.join(missing)}, not installed here; install them with "
        f"`pip install 'pixclip[longgrit]'`, in a clone `pip install -c constraints.txt -e '.[longgrit]'`."
    )
