# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Export of PixCLIP to ONNX and `torch.export` programs that run without this library, in float32 or with int8 weights."""

import copy
import importlib.util
import json
import os
import tempfile
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from PIL import Image
from torch import nn
from torch.export import Dim

from .modeling_pixclip import PixCLIPModel
from .onnx_graphs import name_axes, quantize_onnx_weights, save_onnx
from .region_pooling import soft_masks


DESCRIPTION = "export.json"
# Free sides that a named Dim cannot describe, as they are multiples of the patch.
IMAGE_AXES = {2: "height", 3: "width"}
NOT_CHECKED = [
    "height and width are multiples of patch_size, the same for pixel_values and mask_values",
    "entries of region_image_index are in 0..images-1",
    "a mask that covers nothing gives NaN in dense_embeds",
    "a text without a pooled token gives NaN (pooling 'mean') or the vector of some other token",
]
# torch.export's guards end in an error there; ONNX programs take these sizes.
REFUSED = {"onnx": [], "torch_export": ["a height or width of one patch", "no images or no regions"]}


def _copied(module: nn.Module, without: nn.Module | None = None) -> nn.Module:
    """A copy in float32 on the CPU, of which `without` is no part."""
    module = copy.deepcopy(module, {} if without is None else {id(without): None})
    return module.to("cpu", torch.float32).eval().requires_grad_(False)


class ExportModule(nn.Module):
    """
    Base of the modules that are exported: positional tensors in, normalised embeddings out, and what describes them.

    Their weights are float32 copies of the model's.

    Attributes:
        axes (`dict[str, dict[int, str]]`): For each input, in order, the name of each free axis.
        outputs (`list[str]`): Names of the outputs.
    """

    axes: dict[str, dict[int, str]]
    outputs: list[str]

    def sample_inputs(self, traced: bool = True) -> tuple[torch.Tensor, ...]:
        """Random inputs of the sizes to trace with, no two of which agree by chance, or of others to check with."""
        raise NotImplementedError

    def expected(self, model: PixCLIPModel, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """What the model itself, in float32 on the CPU, makes of the inputs: the outputs that the program must have."""
        raise NotImplementedError

    def dynamic_shapes(self) -> tuple[dict, ...]:
        """`dynamic_shapes` of `torch.export.export`."""
        return tuple({axis: self._dim(name) for axis, name in axes.items()} for axes in self.axes.values())

    def _dim(self, name: str):
        return Dim.DYNAMIC if name in IMAGE_AXES.values() else Dim(name)


class VisionForExport(ExportModule):
    """
    Regions of images: `(pixel_values (B, 3, H, W), mask_values (R, 1, H, W), region_image_index (R,))` to `image_embeds`
    of shape `(R, projection_dim)`, L2-normalised.

    B, R, H and W are free, H and W multiples of the patch. A `torch.export` program takes no side of a single patch, no
    `B = 0` and no `R = 0`; ONNX takes them.

    Args:
        model ([`PixCLIPModel`]): Model whose weights are copied.
        dense (`bool`, *optional*, defaults to `False`): Second output `dense_embeds (R, projection_dim)`, the dense
            features pooled under each mask, as [`PixCLIPModel.get_region_features`] makes them, L2-normalised.

    Example:
        >>> import torch
        >>> from transformers import LlamaConfig
        >>> from modeling_pixclip import PixCLIPConfig, PixCLIPModel, VisionForExport
        >>> text = LlamaConfig(vocab_size=99, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
        >>> vision = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
        >>> model = PixCLIPModel(PixCLIPConfig(vision_config=vision, text_config={"backbone_config": text}))
        >>> regions = VisionForExport(model)
        >>> program = torch.export.export(regions, regions.sample_inputs(), dynamic_shapes=regions.dynamic_shapes())
        >>> images, masks = torch.randn(1, 3, 224, 224), torch.ones(2, 1, 224, 224)
        >>> program.module()(images, masks, torch.tensor([0, 0])).shape
        torch.Size([2, 512])
    """

    def __init__(self, model: PixCLIPModel, dense: bool = False):
        super().__init__()
        self.config = model.config.vision_config
        self.dense = dense
        self.vision_model = _copied(model.vision_model)
        self.vision_model.set_attn_implementation("sdpa")
        self.visual_projection = _copied(model.visual_projection)
        self.axes = {
            "pixel_values": {0: "images", **IMAGE_AXES},
            "mask_values": {0: "regions", **IMAGE_AXES},
            "region_image_index": {0: "regions"},
        }
        self.outputs = ["image_embeds", "dense_embeds"] if dense else ["image_embeds"]

    def embed(self, vectors: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(self.visual_projection(vectors), dim=-1)

    def forward(self, pixel_values: torch.Tensor, mask_values: torch.Tensor, region_image_index: torch.Tensor):
        outputs = self.vision_model(
            pixel_values, mask_values, region_image_index, return_dense=self.dense, return_dict=True
        )
        embeds = self.embed(outputs.pooler_output)
        if not self.dense:
            return embeds
        masks = soft_masks(mask_values, self.config.mask_mean, self.config.mask_std)
        # mask_pool with a kernel of fixed size, which ONNX needs.
        weights = nn.functional.avg_pool2d(masks, self.config.patch_size).flatten(2)
        pooled = torch.matmul(weights / weights.sum(-1, keepdim=True), outputs.dense_state).squeeze(1)
        return embeds, self.embed(pooled)

    def expected(self, model: PixCLIPModel, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        outputs = [model.get_image_features(*inputs)]
        if self.dense:
            outputs.append(model.get_region_features(*inputs))
        return tuple(nn.functional.normalize(output.pooler_output, dim=-1) for output in outputs)

    def _images(self, images: int, traced: bool) -> torch.Tensor:
        rows, columns = self.config.grid_size
        sides = (rows + 1, columns + 2) if traced else (rows, columns)
        height, width = (side * self.config.patch_size for side in sides)
        return torch.randn(images, self.config.num_channels, height, width)

    def sample_inputs(self, traced: bool = True) -> tuple[torch.Tensor, ...]:
        index = torch.tensor([1, 0, 1] if traced else [0])
        pixel_values = self._images(2, traced)
        masks = torch.rand(len(index), 1, *pixel_values.shape[-2:]).round()
        return pixel_values, (masks - self.config.mask_mean) / self.config.mask_std, index


class VisionWithoutMask(VisionForExport):
    """
    Whole images: `(pixel_values (B, 3, H, W),)` to `image_embeds` of shape `(B, projection_dim)`, L2-normalised.

    The configuration's `default_mask` stands in for the mask, as in the model.

    Args:
        model ([`PixCLIPModel`]): Model whose weights are copied.

    Example:
        >>> import torch
        >>> from transformers import LlamaConfig
        >>> from modeling_pixclip import PixCLIPConfig, PixCLIPModel, VisionWithoutMask
        >>> text = LlamaConfig(vocab_size=99, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
        >>> vision = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
        >>> model = PixCLIPModel(PixCLIPConfig(vision_config=vision, text_config={"backbone_config": text}))
        >>> VisionWithoutMask(model)(torch.randn(3, 3, 224, 224)).shape
        torch.Size([3, 512])
    """

    def __init__(self, model: PixCLIPModel):
        super().__init__(model)
        self.axes = {"pixel_values": self.axes["pixel_values"]}

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.embed(self.vision_model(pixel_values, return_dict=True).pooler_output)

    def sample_inputs(self, traced: bool = True) -> tuple[torch.Tensor, ...]:
        return (self._images(3 if traced else 1, traced),)


class TextAdapterForExport(ExportModule):
    """
    Adapter and projection of texts: `(backbone_embeds (T, W),)` to `text_embeds` of shape `(T, projection_dim)`,
    L2-normalised. W is the width of the LLM, whose pooled vectors `encode_backbone` or another runtime makes.

    A tower with a long text path takes `long_text_mask (T,)`, boolean, as second input.

    Args:
        model ([`PixCLIPModel`]): Model whose weights are copied.

    Example:
        >>> import torch
        >>> from transformers import LlamaConfig
        >>> from modeling_pixclip import PixCLIPConfig, PixCLIPModel, TextAdapterForExport
        >>> text = LlamaConfig(vocab_size=99, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
        >>> vision = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
        >>> model = PixCLIPModel(PixCLIPConfig(vision_config=vision, text_config={"backbone_config": text}))
        >>> TextAdapterForExport(model)(torch.randn(3, 32)).shape
        torch.Size([3, 512])
    """

    def __init__(self, model: PixCLIPModel):
        super().__init__()
        self.config = model.config.text_config
        self.text_model = self._copied_tower(model)
        self.axes = {name: {0: "texts"} for name in ("backbone_embeds", *self._path_input())}
        self.outputs = ["text_embeds"]

    def _copied_tower(self, model: PixCLIPModel) -> nn.Module:
        return _copied(model.text_model, without=model.text_model.backbone)

    def _path_input(self) -> list[str]:
        return ["long_text_mask"] if self.config.long_text_projection else []

    def _path_sample(self, texts: int) -> tuple[torch.Tensor, ...]:
        return tuple(torch.arange(texts) % 2 == 0 for _ in self._path_input())

    def forward(self, backbone_embeds: torch.Tensor, long_text_mask: torch.Tensor | None = None) -> torch.Tensor:
        outputs = self.text_model(backbone_embeds=backbone_embeds, long_text_mask=long_text_mask, return_dict=True)
        return nn.functional.normalize(outputs.pooler_output, dim=-1)

    def expected(self, model: PixCLIPModel, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        outputs = model.get_text_features(**dict(zip(self.axes, inputs, strict=True)))
        return (nn.functional.normalize(outputs.pooler_output, dim=-1),)

    def sample_inputs(self, traced: bool = True) -> tuple[torch.Tensor, ...]:
        texts = 3 if traced else 1
        return torch.randn(texts, self.config.hidden_size), *self._path_sample(texts)


class TextForExport(TextAdapterForExport):
    """
    The whole text tower: `(input_ids, attention_mask, pooling_mask)`, each `(T, L)`, to `text_embeds` of shape
    `(T, projection_dim)`, L2-normalised. Texts are padded.

    A tower with a long text path takes `long_text_mask (T,)`, boolean, as last input.

    Args:
        model ([`PixCLIPModel`]): Model whose weights are copied.

    Raises:
        ValueError: If the tower has no backbone, or the long text path has positions of its own.

    Example:
        >>> import torch
        >>> from transformers import LlamaConfig
        >>> from modeling_pixclip import PixCLIPConfig, PixCLIPModel, TextForExport
        >>> text = LlamaConfig(vocab_size=99, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
        >>> vision = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
        >>> model = PixCLIPModel(PixCLIPConfig(vision_config=vision, text_config={"backbone_config": text}))
        >>> ids, mask = torch.tensor([[5, 6, 7]]), torch.ones(1, 3, dtype=torch.long)
        >>> TextForExport(model)(ids, mask, mask).shape
        torch.Size([1, 512])
    """

    def __init__(self, model: PixCLIPModel):
        super().__init__(model)
        tokens = {0: "texts", 1: "tokens"}
        names = ("input_ids", "attention_mask", "pooling_mask")
        self.axes = {**dict.fromkeys(names, tokens), **{name: {0: "texts"} for name in self._path_input()}}

    def _copied_tower(self, model: PixCLIPModel) -> nn.Module:
        if model.text_model.backbone is None:
            raise ValueError(
                "the text tower has no backbone (backbone_embeds_only=True), so it cannot be exported as a whole. Export "
                "its adapter ('text_adapter'), or load the model with text_backbone=ID."
            )
        if self.config.long_text_positions is not None:
            raise ValueError(
                f"the long text path has positions of its own (long_text_positions={self.config.long_text_positions}), and "
                "a run for each path is not exported. Export the adapter ('text_adapter') for vectors of "
                "encode_backbone."
            )
        tower = _copied(model.text_model)
        tower.backbone.set_attn_implementation("sdpa")
        return tower

    def _dim(self, name: str):
        return Dim(name, max=self.config.max_text_positions(long_text=False)) if name == "tokens" else Dim(name)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        pooling_mask: torch.Tensor,
        long_text_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        outputs = self.text_model._run_backbone(input_ids, attention_mask)
        vectors = self.text_model._pool(outputs.last_hidden_state, input_ids, pooling_mask * attention_mask, None)
        return super().forward(vectors, long_text_mask)

    def sample_inputs(self, traced: bool = True) -> tuple[torch.Tensor, ...]:
        texts, tokens = (3, 7) if traced else (2, 4)
        input_ids = torch.randint(self.config.backbone_text_config.vocab_size, (texts, tokens))
        attention_mask = torch.ones_like(input_ids)
        attention_mask[0, tokens - 2 :] = 0
        if self.config.pooling == "eos":
            ends = self.config.end_of_text_id
            input_ids[torch.arange(texts), attention_mask.sum(-1) - 1] = ends if isinstance(ends, int) else ends[0]
        pooling_mask = attention_mask.clone()
        pooling_mask[:, 0] = 0
        return input_ids, attention_mask, pooling_mask, *self._path_sample(texts)


PARTS: dict[str, Callable[..., ExportModule]] = {
    "regions": VisionForExport,
    "images": VisionWithoutMask,
    "text_adapter": TextAdapterForExport,
    "texts": TextForExport,
}


def export_model(
    model: PixCLIPModel,
    output_dir: str | os.PathLike,
    processor: Any = None,
    parts: Iterable[str] = ("regions", "images", "text_adapter"),
    format: Literal["onnx", "torch_export"] = "onnx",
    int8: Literal["weight_only", "dynamic"] | None = None,
    dense: bool = False,
) -> dict[str, Any]:
    r"""
    Writes a model as programs that need only onnxruntime, or only PyTorch, and `export.json`, which describes them.

    Each program is run on random inputs, also of other sizes than those it was traced with, and compared with what
    [`PixCLIPModel.get_image_features`], [`PixCLIPModel.get_region_features`] and [`PixCLIPModel.get_text_features`]
    make of them, normalised. The largest difference (without `int8`) or the least cosine (with it) is in `export.json`,
    beside inputs, outputs, what a program refuses (`refused`) and what it does not check (`not_checked`), preprocessing
    and the score's scale. `export.json` is written last.

    Args:
        model ([`PixCLIPModel`]): Also [`PixCLIPForPreTraining`]. Programs are float32 whatever its dtype is.
        output_dir (`str` or `PathLike`): Folder to write to.
        processor ([`PixCLIPProcessor`] or [`PixCLIPImageProcessor`], *optional*): Saved beside the programs and
            described in `export.json`, which holds `null` for what it says nothing of.
        parts (`Iterable[str]`, *optional*, defaults to `("regions", "images", "text_adapter")`): What to export:
            [`VisionForExport`], [`VisionWithoutMask`], [`TextAdapterForExport`], and with `"texts"` [`TextForExport`].
        format (`"onnx"` or `"torch_export"`, *optional*, defaults to `"onnx"`): `PART.onnx` for any ONNX runtime, or
            `PART.pt2` for `torch.export.load`.
        int8 (`"weight_only"` or `"dynamic"`, *optional*): For ONNX: store the weights of linear layers in int8, a scale
            an output channel; activations stay float32. `"dynamic"` also rounds activations to int8 at run time, which
            is faster. Embedding tables and convolutions stay float32.
        dense (`bool`, *optional*, defaults to `False`): Second output of `"regions"`, see [`VisionForExport`].

    Returns:
        `dict`: What `export.json` holds.

    Raises:
        ValueError: If a part, the format or the kind of int8 is unknown, the folder holds an export, a part cannot be
            exported, or a program's result is not the model's.
        ImportError: If a package that the format needs is missing.

    Example:
        >>> import tempfile
        >>> from transformers import LlamaConfig
        >>> from modeling_pixclip import PixCLIPConfig, PixCLIPModel, export_model
        >>> text = LlamaConfig(vocab_size=99, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
        >>> vision = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
        >>> model = PixCLIPModel(PixCLIPConfig(vision_config=vision, text_config={"backbone_config": text}))
        >>> description = export_model(model, tempfile.mkdtemp(), parts=["text_adapter"], format="torch_export")
        >>> description["programs"]["text_adapter"]["inputs"]
        {'backbone_embeds': {'dtype': 'float32', 'shape': ['texts', 32]}}
    """
    parts = list(dict.fromkeys(parts))
    _check_request(parts, format, int8, dense)
    folder = Path(output_dir)
    if (folder / DESCRIPTION).exists():
        raise ValueError(f"{folder} holds an export already ({DESCRIPTION}). Delete it, or name another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    description = _describe(model, processor, format, int8)
    reference = _reference(model, parts)
    with tempfile.TemporaryDirectory(dir=folder) as temporary, torch.random.fork_rng(devices=[]):
        # The inputs to check with are the same each time, and no draws of the caller's.
        torch.manual_seed(0)
        written = Path(temporary)
        for part in parts:
            module = VisionForExport(model, dense) if part == "regions" else PARTS[part](model)
            described = {"file": f"{part}.{'onnx' if format == 'onnx' else 'pt2'}", **_describe_sides(module)}
            description["programs"][part] = described
            file, told = written / described["file"], {**description, "programs": {part: described}}
            run = _write_onnx(module, file, int8, told) if format == "onnx" else _write_program(module, file, told)
            described |= _measure(part, module, reference, run, int8)
        if processor is not None:
            processor.save_pretrained(written)
        (written / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
        files = [path for path in written.rglob("*") if path.is_file()]
        for path in sorted(files, key=lambda path: path.name == DESCRIPTION):
            target = folder / path.relative_to(written)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, target)
    return description


def _check_request(parts: list[str], format: str, int8: str | None, dense: bool):
    unknown = [part for part in parts if part not in PARTS]
    if unknown or not parts:
        raise ValueError(f"parts are {parts}; accepted are one or several of {list(PARTS)}.")
    if dense and "regions" not in parts:
        raise ValueError(f"dense=True is a second output of the part 'regions', which is not among parts ({parts}).")
    packages = {"onnx": ["onnx", "onnxscript", "onnxruntime"], "torch_export": []}
    if format not in packages:
        raise ValueError(f"format is {format!r}; accepted are {list(packages)}.")
    accepted = {"onnx": [None, "weight_only", "dynamic"], "torch_export": [None]}[format]
    if int8 not in accepted:
        raise ValueError(f"int8 is {int8!r}; accepted with format={format!r} are {accepted}.")
    missing = [name for name in packages[format] if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"export to {format!r} needs {', '.join(missing)}: pip install {' '.join(packages[format])}")


def _describe(model: PixCLIPModel, processor: Any, format: str, int8: str | None) -> dict[str, Any]:
    config = model.config
    vision_config, text_config = config.vision_config, config.text_config
    try:
        version = metadata.version("pixclip")
    except metadata.PackageNotFoundError:
        version = None
    preprocessing = {
        "image": None,
        "mask": {
            "inside": 1.0,
            "outside": 0.0,
            "mean": vision_config.mask_mean,
            "std": vision_config.mask_std,
            "values": "(mask - mean) / std, resized and cropped as the image",
            "none_given": vision_config.default_mask,
        },
        "text": None,
    }
    image_processor = getattr(processor, "image_processor", processor)
    if image_processor is not None:
        options = image_processor.to_dict()
        names = ("size", "resize_mode", "rescale_factor", "image_mean", "image_std")
        preprocessing["image"] = {
            "channels": "RGB",
            **{name: options[name] for name in names},
            "resample": Image.Resampling(options["resample"]).name.lower(),
        }
    if image_processor is not processor:
        preprocessing["text"] = {
            "template": processor.text_template,
            "max_length": processor.text_max_length,
            "pooling_mask": processor.text_pooling,
        }
    with torch.no_grad():
        scale = float(model._inverse_temperature())
    return {
        "format": format,
        "int8": int8,
        "pixclip_version": version,
        "torch_version": torch.__version__,
        "transformers_version": transformers.__version__,
        "projection_dim": config.projection_dim,
        "patch_size": vision_config.patch_size,
        "image_size": [side * vision_config.patch_size for side in vision_config.grid_size],
        "text_width": text_config.hidden_size,
        "text_pooling": text_config.pooling,
        "logit_scale": scale,
        "scores": "logit_scale * image_embeds @ text_embeds.T",
        "refused": REFUSED[format],
        "not_checked": NOT_CHECKED,
        "preprocessing": preprocessing,
        "programs": {},
    }


def _describe_sides(module: ExportModule) -> dict[str, Any]:
    """Names, dtypes and shapes of inputs and outputs; free axes by name."""
    sample = module.sample_inputs()
    inputs = {
        name: {
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "shape": [axes.get(axis, side) for axis, side in enumerate(tensor.shape)],
        }
        for (name, axes), tensor in zip(module.axes.items(), sample, strict=True)
    }
    # The last input has a row for each row of the output.
    rows = list(module.axes.values())[-1][0]
    shape = [rows, module.config.projection_dim]
    return {"inputs": inputs, "outputs": {name: {"dtype": "float32", "shape": shape} for name in module.outputs}}


def _traced(module: ExportModule) -> torch.export.ExportedProgram:
    return torch.export.export(module, module.sample_inputs(), dynamic_shapes=module.dynamic_shapes(), strict=False)


def _reference(model: PixCLIPModel, parts: list[str]) -> PixCLIPModel:
    """The model as programs are, in float32 on the CPU: itself if it is there, else a copy, of the LLM only for texts."""
    weights = model.parameters()
    if not model.training and all(one.device.type == "cpu" and one.dtype == torch.float32 for one in weights):
        return model
    return _copied(model, without=None if "texts" in parts else model.text_model.backbone)


def _measure(
    part: str, module: ExportModule, model: PixCLIPModel, run: Callable, int8: str | None
) -> dict[str, float]:
    """How far a program is from the model, on random inputs of the traced and of other sizes."""
    differences, cosines = [], []
    with torch.no_grad():
        for traced in (True, False):
            inputs = module.sample_inputs(traced)
            for one, other in zip(run(inputs), module.expected(model, inputs), strict=True):
                differences.append((one - other).abs().max())
                cosines.append(nn.functional.cosine_similarity(one, other).min())
    if int8 is not None:
        return {"least_cosine": float(torch.stack(cosines).min())}
    # Not Python's max, which passes over NaN.
    difference = float(torch.stack(differences).max())
    if not difference <= 1e-4:
        raise ValueError(
            f"the exported program {part!r} differs from the model by {difference:.2e}, more than 1e-4. Its parts are not "
            "all exported rightly by this version of PyTorch; for texts try the part 'text_adapter'."
        )
    return {"largest_difference": difference}


def _write_program(module: ExportModule, path: Path, description: dict) -> Callable:
    torch.export.save(_traced(module), path, extra_files={"metadata.json": json.dumps(description)})
    program = torch.export.load(path).module()

    def run(inputs):
        outputs = program(*inputs)
        return (outputs,) if isinstance(outputs, torch.Tensor) else outputs

    return run


def _write_onnx(module: ExportModule, path: Path, int8: str | None, description: dict) -> Callable:
    import onnx
    import onnxruntime

    proto = torch.onnx.export(
        _traced(module), dynamo=True, verbose=False, input_names=list(module.axes), output_names=module.outputs
    ).model_proto
    name_axes(proto.graph, module.axes)
    # The exporter's notes: stack traces, with the paths of this machine.
    for noted in (proto, proto.graph, *proto.graph.node, *proto.graph.value_info, *proto.graph.initializer):
        del noted.metadata_props[:]
    if int8 == "weight_only":
        quantize_onnx_weights(proto)
    for key, value in description.items():
        proto.metadata_props.add(key=key, value=value if isinstance(value, str) else json.dumps(value))
    if int8 == "dynamic":
        from onnxruntime.quantization import QuantType, quantize_dynamic

        with tempfile.TemporaryDirectory(dir=path.parent) as temporary:
            unquantised = Path(temporary) / path.name
            large = save_onnx(proto, unquantised)
            quantize_dynamic(
                unquantised,
                path,
                op_types_to_quantize=["MatMul", "Gemm"],
                per_channel=True,
                weight_type=QuantType.QInt8,
                use_external_data_format=large,
            )
    else:
        save_onnx(proto, path)
    onnx.checker.check_model(str(path), full_check=True)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(inputs):
        feed = {name: tensor.numpy() for name, tensor in zip(module.axes, inputs, strict=True)}
        return [torch.from_numpy(output) for output in session.run(None, feed)]

    return run


__all__ = [
    "ExportModule",
    "TextAdapterForExport",
    "TextForExport",
    "VisionForExport",
    "VisionWithoutMask",
    "export_model",
    "quantize_onnx_weights",
]
