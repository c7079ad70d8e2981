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
from safetensors import safe_open
from safetensors.torch import save_file
from transformers.modeling_utils import PreTrainedModel

from .conversion import convert_checkpoint, source_layouts
from .conversion_rules import ConversionError
from .disk_sync import sync_path


REPORT_FILE = "conversion_report.json"
LEFTOVERS_FILE = "conversion.safetensors"
_RECORD = "pixclip_conversion"


@contextmanager
def new_folder(output_dir: str | os.PathLike) -> Iterator[Path]:
    """
    A folder to write to beside `output_dir`, which becomes it when all went well, and is gone otherwise.

    Raises:
        ConversionError: If `output_dir` exists and is not an empty folder.
    """
    output = Path(output_dir)
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise ConversionError(f"{os.fspath(output_dir)!r} exists and is not empty. Give a new folder.")
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


def weight_digests(model: PreTrainedModel) -> dict[str, str]:
    """SHA-256 of dtype, shape and values of each weight."""
    digests = {}
    for name, tensor in model.state_dict().items():
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
    found = weight_digests(model)
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
    was loaded again and compared bit by bit, or not at all.

    Args:
        source (`str`), checkpoints (list of `str` or `os.PathLike`): As in [`convert_checkpoint`].
        output_dir (`str` or `os.PathLike`): New or empty folder.
        **options: Those of [`convert_checkpoint`].

    Returns:
        `dict`: The report.

    Raises:
        ConversionError: As in [`convert_checkpoint`], or if `output_dir` is not empty.

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
        model.save_pretrained(folder)
        (conversion.processor or conversion.image_processor).save_pretrained(folder)
        if any(layout.source_config for layout in source_layouts(source)):
            leftovers = {name: whole_tensor(tensor) for name, tensor in conversion.leftovers.items()}
            save_file(leftovers, folder / LEFTOVERS_FILE, metadata={_RECORD: json.dumps(conversion.record)})
            del leftovers
        write_json(folder / REPORT_FILE, report)
        model_class, digests = type(model), weight_digests(model)
        # Not both models, and the source, in memory at once.
        del conversion, model
        check_folder(folder, model_class, digests)
    return report


def read_leftovers(folder: str | os.PathLike) -> tuple[dict[str, Any] | None, dict[str, torch.Tensor]]:
    """What [`convert_to_folder`] has kept of the source: record and tensors; `None` where there is nothing."""
    path = Path(folder) / LEFTOVERS_FILE
    if not path.is_file():
        return None, {}
    with safe_open(path, "pt") as file:
        record = json.loads((file.metadata() or {})[_RECORD])
        return record, {name: file.get_tensor(name) for name in file.keys()}


__all__ = ["convert_to_folder"]
