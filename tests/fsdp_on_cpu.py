# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""
Starts a script in which accelerate shards on CPUs too: it does FSDP for every kind of device but this one, without need.

    accelerate launch --config_file examples/configs/fsdp2_8gpu.yaml --cpu --num_processes 2 tests/fsdp_on_cpu.py SCRIPT ...
"""

import runpy
import sys
from pathlib import Path

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType


set_up = AcceleratorState.__init__


def set_up_as_sharded(self, *arguments, **options):
    state = PartialState(cpu=True)
    if not AcceleratorState._shared_state:
        # Any of the types that FSDP goes with; nothing else asks for it where there is a device already.
        state._shared_state["distributed_type"] = DistributedType.MULTI_HPU
    set_up(self, *arguments, **options)


AcceleratorState.__init__ = set_up_as_sharded
sys.argv = sys.argv[1:]
sys.path[0] = str(Path(sys.argv[0]).parent)
runpy.run_path(sys.argv[0], run_name="__main__")
