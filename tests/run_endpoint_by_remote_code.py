# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Answers requests by the handler of a saved folder, without PixCLIP; run by test_endpoint_handler.py."""

import importlib.util
import json
import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parent))
# Blocks the packages as it is imported.
from load_by_remote_code import BLOCKED


def main():
    folder, requests, answers = sys.argv[1:]
    spec = importlib.util.spec_from_file_location("handler", str(Path(folder) / "handler.py"))
    handler = importlib.util.module_from_spec(spec)
    sys.modules["handler"] = handler
    spec.loader.exec_module(handler)
    endpoint = handler.EndpointHandler(folder)
    assert type(endpoint.model).__module__.startswith("transformers_modules.")
    found = [endpoint(request) for request in json.loads(Path(requests).read_text())]
    Path(answers).write_text(json.dumps(found, allow_nan=False))
    assert not [name for name in sys.modules if name.partition(".")[0] in BLOCKED]


if __name__ == "__main__":
    main()
