# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Writes a converted checkpoint: complete and read back, or not at all."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers.modeling_utils import PreTrainedModel

from .conversion import convert_checkpoint, source_layouts
from .conversion_rules import ConversionError
from .disk_sync import sync_path


REPORT_FILE = "conversion_report.json"
LEFTOVERS_FILE = "conversion.safetensors"
_RECORD = "pixclip_conversion"
_DTYPES = {
    name: getattr(torch, name) for name in "bfloat16 bool float16 float32 float64 int8 int16 int32 int64 uint8".split()
}
_CONTAINERS = ("safetensors", "torch", "torchscript")
# Of a folder's other files: configurations, reports, code.
_OTHER_SUFFIXES = (".json", ".py")


@contextmanager
def new_folder(output_dir: str | os.PathLike) -> Iterator[Path]:
    """
    A folder to write to beside `output_dir`, which becomes it when all went well, and is gone otherwise.

    Of a process that was killed, a hidden `.NAME.xxxxxxxx` stays beside `output_dir`; it can be deleted.

    Raises:
        ConversionError: If `output_dir` exists and is not an empty folder, or cannot be replaced by another folder.
    """
    # What a link points to is written to; the link stays.
    output = Path(output_dir).resolve()
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise ConversionError(f"{os.fspath(output_dir)!r} exists and is not empty. Give a new folder.")
    if output == Path.cwd() or os.path.ismount(output):
        what = "the folder that you are in" if output == Path.cwd() else "a mount point"
        raise ConversionError(
            f"{os.fspath(output_dir)!r} is {what}, which no finished folder can take the place of. Give a new folder in it."
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        yield folder
        folder.chmod(0o777 & ~_umask())
        for path in (*folder.rglob("*"), folder):
            sync_path(path)
        os.rename(folder, output)
        sync_path(output.parent)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _umask() -> int:
    # There is no other way to read it.
    mask = os.umask(0)
    os.umask(mask)
    return mask


def whole_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in memory of its own, as files of tensors need it."""
    if tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size():
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)


def tensor_digests(tensors: dict[str, torch.Tensor]) -> dict[str, str]:
    """SHA-256 of dtype, shape and bits of each tensor."""
    digests = {}
    for name, tensor in tensors.items():
        digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy())
        digests[name] = digest.hexdigest()
    return digests


def check_folder(folder: Path, model_class: type[PreTrainedModel], digests: dict[str, str]):
    """Loads a written model and compares it with what was to be written, bit by bit."""
    config = model_class.config_class.from_pretrained(folder)
    # An LLM that the folder names is not part of it, and is not loaded for this.
    config.text_config.backbone_embeds_only |= not config.text_config.backbone_in_checkpoint
    model, info = model_class.from_pretrained(folder, config=config, output_loading_info=True)
    wrong = {name: sorted(map(str, info[name])) for name in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    found = tensor_digests(model.state_dict())
    differ = [name for name in digests if found.get(name) != digests[name]]
    if any(wrong.values()) or differ or found.keys() != digests.keys():
        raise ConversionError(
            f"the written model does not load as it was converted: {wrong}, of other values or dtype {differ[:5]}. The disk "
            "may be faulty; nothing was kept."
        )


def write_json(path: Path, content: Any):
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def convert_to_folder(
    source: str,
    checkpoints: list[str | os.PathLike],
    output_dir: str | os.PathLike,
    **options: Any,
) -> dict[str, Any]:
    """
    Converts a checkpoint of another project and writes it as a folder that `from_pretrained` loads.

    Beside model and processor there are `conversion_report.json`, and for [`export_checkpoint`] what of the source has no
    place in the model (`conversion.safetensors`), where its layout can be written back. The folder appears whole, after it
    was loaded again and compared bit by bit, or not at all; only of a process that was killed, a hidden `.NAME.xxxxxxxx` stays
    beside it, which can be deleted.

    Args:
        source (`str`), checkpoints (list of `str` or `os.PathLike`): As in [`convert_checkpoint`].
        output_dir (`str` or `os.PathLike`): New or empty folder.
        **options: Those of [`convert_checkpoint`].

    Returns:
        `dict`: The report.

    Raises:
        ConversionError: As in [`convert_checkpoint`], or if `output_dir` is not empty, the current folder or a mount point.

    Example:
        >>> import os, tempfile
        >>> from transformers import CLIPConfig, CLIPModel
        >>> from modeling_pixclip import PixCLIPModel, convert_to_folder
        >>> shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 2}
        >>> config = CLIPConfig(
        ...     text_config={**shape, "vocab_size": 99, "eos_token_id": 98, "bos_token_id": 97},
        ...     vision_config={**shape, "image_size": 32, "patch_size": 16},
        ... )
        >>> folder = tempfile.mkdtemp()
        >>> CLIPModel(config).save_pretrained(folder)
        >>> report = convert_to_folder("openai-clip", [folder], os.path.join(folder, "pixclip"))
        >>> report["dropped"], report["taken"]["vision blocks"]
        ({}, 16)
        >>> model = PixCLIPModel.from_pretrained(os.path.join(folder, "pixclip"))
    """
    with new_folder(output_dir) as folder:
        conversion = convert_checkpoint(source, checkpoints, **options)
        model, report = conversion.model, conversion.report
        has_way_back = any(layout.source_config for layout in source_layouts(source))
        if has_way_back and options.get("dtype") is not None and _is_rounded(conversion.record, model.dtype):
            report["notes"].append(
                f"weights of the source are rounded to {report['dtype']}, as --dtype asks; a way back gives the rounded ones"
            )
        model.save_pretrained(folder)
        (conversion.processor or conversion.image_processor).save_pretrained(folder)
        if has_way_back:
            leftovers = {name: whole_tensor(tensor) for name, tensor in conversion.leftovers.items()}
            save_file(leftovers, folder / LEFTOVERS_FILE, metadata={_RECORD: json.dumps(conversion.record)})
            del leftovers
        write_json(folder / REPORT_FILE, report)
        model_class, digests = type(model), tensor_digests(model.state_dict())
        # Not both models, and the source, in memory at once.
        del conversion, model
        check_folder(folder, model_class, digests)
    return report


def _is_rounded(record: dict[str, Any], dtype: torch.dtype) -> bool:
    given = {getattr(torch, name) for file in record["files"] for _, name, _ in file["tensors"]}
    return any(other.is_floating_point and torch.promote_types(other, dtype) != dtype for other in given)


def damaged_record(reason: str) -> ConversionError:
    return ConversionError(
        f"the record of the source ({LEFTOVERS_FILE}) cannot be used: {reason}. Delete the file; the model is written without "
        "it, only not bit-equal to what came in."
    )


def read_leftovers(folder: str | os.PathLike) -> tuple[dict[str, Any] | None, dict[str, torch.Tensor]]:
    """What [`convert_to_folder`] has kept of the source: record and tensors, unchecked; `None` where there is nothing."""
    path = Path(folder) / LEFTOVERS_FILE
    if not path.is_file():
        return None, {}
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            leftovers = {name: file.get_tensor(name) for name in file.keys()}
        if _RECORD not in metadata:
            raise damaged_record(f"its metadata has no {_RECORD!r}")
        record = json.loads(metadata[_RECORD])
    except (SafetensorError, json.JSONDecodeError, RecursionError) as error:
        raise damaged_record(str(error)) from error
    if not isinstance(record, dict):
        raise damaged_record(f"it is a {type(record).__name__}")
    return record, leftovers


def check_record(record: Any, leftovers: dict[str, torch.Tensor]):
    """
    Refuses a record and leftovers that no conversion has made: a saved folder may come from anyone.

    Raises:
        ConversionError: Naming what is wrong and the remedy.
    """
    try:
        layout = next(layout for layout in source_layouts(record["source"]) if layout.variant == record["variant"])
        files = [(file["part"], file["name"], file["container"], file["config"]) for file in record["files"]]
        tensors = {file["part"]: file["tensors"] for file in record["files"]}
        described = {
            part.prefix + name: (_DTYPES[dtype], tuple(shape))
            for part in layout.parts
            for name, dtype, shape in tensors[part.name]
        }
    except (AttributeError, KeyError, StopIteration, TypeError, ValueError) as error:
        raise damaged_record(f"it is no record of a conversion ({error!r})") from error
    if len(files) != len(layout.parts):
        raise damaged_record(f"it names {len(files)} files; accepted are {len(layout.parts)}")
    for _, name, container, config in files:
        if not is_plain_file_name(name):
            raise damaged_record(f"{name!r} is no plain name of a file of weights")
        misnamed = name.endswith(".safetensors") and container != "safetensors"
        if container not in _CONTAINERS or misnamed or not isinstance(config, (dict, type(None))):
            raise damaged_record(f"container or config of {name!r} are of no known kind")
    for name, (dtype, shape) in described.items():
        if not all(type(size) is int and size >= 0 for size in shape):
            raise damaged_record(f"{name!r} has the shape {shape}")
    for key, tensor in leftovers.items():
        kind, _, name = key.partition(":")
        if name not in described or kind not in ("dropped", "original", "rows"):
            raise damaged_record(f"its tensor {key!r} belongs to nothing that the record names")
        dtype, shape = described[name]
        whole = tensor.dtype == dtype and tensor.shape == shape
        rows = tensor.dtype == dtype and tensor.ndim == 2 and tensor.shape[1:] == shape[1:]
        if not (rows if kind == "rows" else whole) or (kind == "original" and layout.prepare is None):
            raise damaged_record(
                f"its tensor {key!r} is {tensor.dtype} {tuple(tensor.shape)}; the record has {dtype} {shape}"
            )


def is_plain_file_name(name: Any) -> bool:
    """Whether a name that others have given can be one of a file of weights in a folder of ours."""
    return (
        isinstance(name, str)
        # Before all that fails on half a character.
        and name.isprintable()
        and name == name.strip()
        and 0 < len(name.encode()) < 240
        and not name.startswith(".")
        and not set(name) & set("/\\:")
        and not name.lower().endswith(_OTHER_SUFFIXES)
    )


__all__ = ["convert_to_folder"]
