# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What the exporter leaves to do on an ONNX graph: names of free axes, int8 weights, files that fit protobuf's limit."""

from pathlib import Path
from typing import Any

import numpy as np


# Below the 2 GB that protobuf allows a message.
ONE_FILE_BYTES = 1_900_000_000


def name_axes(graph: Any, axes: dict[str, dict[int, str]]):
    """Gives free axes their names in place of the exporter's symbols."""
    names = {}
    for value in graph.input:
        for axis, name in axes[value.name].items():
            names[value.type.tensor_type.shape.dim[axis].dim_param] = name
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in names:
                dim.dim_param = names[dim.dim_param]


def save_onnx(proto: Any, path: Path) -> bool:
    """Whether the weights went into a file of their own, `PART.onnx.data`."""
    import onnx

    large = sum(len(tensor.raw_data) for tensor in proto.graph.initializer) > ONE_FILE_BYTES
    onnx.save_model(proto, path, save_as_external_data=large, location=f"{path.name}.data" if large else None)
    return large


def quantize_onnx_weights(proto: Any) -> int:
    """
    Stores the matrices that an ONNX graph multiplies by in int8, symmetric, with one scale an output channel.

    Standard operators alone (`DequantizeLinear` before the product), so that any runtime takes the graph. Changed in
    place.

    Args:
        proto (`onnx.ModelProto`): Graph with float32 weights.

    Returns:
        `int`: Number of matrices.

    Example:
        >>> import onnx
        >>> from modeling_pixclip.onnx_graphs import quantize_onnx_weights
        >>> quantize_onnx_weights(onnx.load("exported/regions.onnx"))  # doctest: +SKIP
        73
    """
    from onnx import helper, numpy_helper

    graph = proto.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    nodes = {}
    for node in graph.node:
        weight = weights.get(node.input[1]) if node.op_type in ("MatMul", "Gemm") else None
        if weight is None or weight.name in nodes or len(weight.dims) != 2:
            continue
        matrix = numpy_helper.to_array(weight)
        transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
        channels = 0 if transposed else 1
        scale = np.abs(matrix).max(1 - channels, keepdims=True) / 127
        # A channel of zeros has no scale of its own.
        scale[scale == 0] = 1
        name = weight.name
        rounded = numpy_helper.from_array(np.rint(matrix / scale).astype(np.int8), f"{name}_int8")
        scales = numpy_helper.from_array(scale.squeeze(1 - channels).astype(np.float32), f"{name}_scale")
        nodes[name] = helper.make_node(
            "DequantizeLinear", [rounded.name, scales.name], [name], f"{name}_dequantize", axis=channels
        )
        graph.initializer.remove(weight)
        graph.initializer.extend([rounded, scales])
    products = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes.values(), *products])
    return len(nodes)


__all__ = ["name_axes", "quantize_onnx_weights", "save_onnx"]
