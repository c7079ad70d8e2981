# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Reads the tensors of checkpoint files, whoever wrote them, without ever running what a file may hold beside tensors."""

import hashlib
import json
import os
import pickle
import re
import struct
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from .conversion_rules import ConversionError


_WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
# Of distributed training, and of torch.compile.
_PREFIXES = ("module.", "_orig_mod.")
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_WHOLE = ("model.safetensors", "pytorch_model.bin")
_READ_AT_ONCE = 8 << 20
_STORAGES = {
    "BFloat16Storage": torch.bfloat16,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "ShortStorage": torch.int16,
}
_REMEDY = (
    "Where you trust the file, load it with the project's own code and save its state dict alone: "
    "safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')."
)


@dataclass
class CheckpointFile:
    """
    The tensors of one checkpoint file or folder.

    Args:
        path (`Path`): Where it lies.
        container (`"safetensors"`, `"torch"` or `"torchscript"`): How it is stored.
        tensors (`dict[str, torch.Tensor]`): Memory-mapped where the container can be, no two in the same memory; unwrapped,
            without `module.` and `_orig_mod.`.
        files (list of `Path`): The files that were read.
        config (`dict`, *optional*): The folder's `config.json`.
        beside (list of `str`): Entries beside the weights (optimizer, epoch), which are not read.
        unwrapped (list of `str`): Wrappers and prefixes that were taken off.
    """

    path: Path
    container: str
    tensors: dict[str, torch.Tensor]
    files: list[Path]
    config: dict[str, Any] | None = None
    beside: list[str] = field(default_factory=list)
    unwrapped: list[str] = field(default_factory=list)

    def describe(self) -> list[dict[str, Any]]:
        """Name, size and SHA-256 of each file."""
        return [{"name": file.name, "bytes": file.stat().st_size, "sha256": file_sha256(file)} for file in self.files]


def file_sha256(path: str | os.PathLike) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_READ_AT_ONCE):
            digest.update(block)
    return digest.hexdigest()


def read_checkpoint(path: str | os.PathLike) -> CheckpointFile:
    """
    Reads a checkpoint: safetensors, a torch file (`.pt`, `.pth`, `.bin`), a TorchScript archive, or a folder of Transformers.

    A torch file is read with `weights_only=True`. Of a TorchScript archive (OpenAI's releases) only the tensors are read;
    its code is neither compiled nor run.

    Args:
        path (`str` or `os.PathLike`): File or folder.

    Returns:
        [`CheckpointFile`]

    Raises:
        ConversionError: If there is no such file, it is none of these, or it needs unpickling.

    Example:
        >>> import os, tempfile, torch
        >>> from modeling_pixclip.checkpoint_files import read_checkpoint
        >>> path = os.path.join(tempfile.mkdtemp(), "weights.pth")
        >>> torch.save({"state_dict": {"module.proj": torch.ones(2)}, "epoch": 3}, path)
        >>> file = read_checkpoint(path)
        >>> list(file.tensors), file.beside
        (['proj'], ['epoch'])
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        raise ConversionError(f"there is no checkpoint {os.fspath(path)!r}. Give a file or a folder on this machine.")
    container, content = _read_file(path)
    file = CheckpointFile(path, container, {}, [path])
    _unwrap(file, content)
    return file


def _read_folder(folder: Path) -> CheckpointFile:
    index = next((folder / name for name in _INDEXES if (folder / name).is_file()), None)
    whole = next((folder / name for name in _WHOLE if (folder / name).is_file()), None)
    if index is None and whole is None:
        raise ConversionError(
            f"the folder {os.fspath(folder)!r} has no weights of Transformers: none of {', '.join(_INDEXES + _WHOLE)} is "
            "there. Give the checkpoint's file itself, or a complete folder."
        )
    if whole is not None:
        names, weight_map = [whole.name], None
    else:
        weight_map = _read_json(index)["weight_map"]
        names = sorted(set(weight_map.values()))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise ConversionError(
                f"{index.name} in {os.fspath(folder)!r} names {len(names)} shards, of which {missing} are not there. "
                "Fetch the whole folder."
            )
    file = CheckpointFile(folder, "", {}, [folder / name for name in names])
    content: dict[str, Any] = {}
    for part in file.files:
        file.container, tensors = _read_file(part)
        twice = sorted(content.keys() & tensors.keys())
        if twice:
            raise ConversionError(f"the shards of {os.fspath(folder)!r} hold {twice[:5]} twice.")
        content.update(tensors)
    if weight_map is not None and set(weight_map) != set(content):
        raise ConversionError(
            f"{index.name} and the shards of {os.fspath(folder)!r} differ: only in the index "
            f"{sorted(set(weight_map) - set(content))[:5]}, only in the shards {sorted(set(content) - set(weight_map))[:5]}."
        )
    _unwrap(file, content)
    if (folder / "config.json").is_file():
        file.config = _read_json(folder / "config.json")
    return file


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConversionError(f"{path.name} is no JSON: {error}.") from error


def _read_file(path: Path) -> tuple[str, dict[str, Any]]:
    with path.open("rb") as file:
        start = file.read(48)
    if start.startswith(b"version https://git-lfs"):
        raise ConversionError(
            f"{path.name} is a Git LFS pointer and not the file itself. Fetch it with `git lfs pull`."
        )
    if start[8:9] == b"{" or path.suffix == ".safetensors":
        try:
            return "safetensors", load_file(path)
        except SafetensorError as error:
            raise ConversionError(f"{path.name} is no complete safetensors file: {error}.") from error
    if not start.startswith(b"PK"):
        return "torch", _load_torch(path, mmap=False)
    try:
        with zipfile.ZipFile(path) as archive:
            script = any(name.split("/", 1)[-1] == "constants.pkl" for name in archive.namelist())
    except zipfile.BadZipFile as error:
        raise ConversionError(f"{path.name} is cut off or damaged: {error}. Fetch it again.") from error
    return ("torchscript", _read_torchscript(path)) if script else ("torch", _load_torch(path, mmap=True))


def _load_torch(path: Path, mmap: bool) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        # Torch explains at length how to switch the check off; of that the reason alone is wanted.
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        other = re.search(r"Unsupported [^\n]+", str(error))
        reason = f"it holds {named[1]}" if named else other[0] if other else "it is of no known kind"
        raise ConversionError(
            f"{path.name} is not tensors alone and could run code when unpickled, which is never done here: {reason}. "
            f"{_REMEDY}"
        ) from error
    except (EOFError, RuntimeError, ValueError) as error:
        raise ConversionError(f"{path.name} cannot be read as a torch file: {error}.") from error


class _ScriptModule:
    """Stands for any class of a TorchScript archive; what it holds are its attributes."""

    def __setstate__(self, state: Any):
        self.attributes = state if isinstance(state, dict) else {}


class _TensorsOfArchive(pickle.Unpickler):
    """Makes tensors, containers and [`_ScriptModule`]s, and refuses all else by name."""

    def __init__(self, file, path: Path, archive: zipfile.ZipFile, root: str):
        super().__init__(file)
        self.path, self.archive, self.root = path, archive, root
        self.whole = torch.UntypedStorage.from_file(os.fspath(path), False, path.stat().st_size)

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):
            return _ScriptModule
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self._tensor
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if module == "torch.jit._pickle":
            return lambda value, *tag: value
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        raise ConversionError(
            f"{self.path.name} is a TorchScript archive with a {module}.{name} in it, which is never made here. {_REMEDY}"
        )

    def persistent_load(self, identifier: tuple) -> tuple[torch.dtype, torch.UntypedStorage]:
        _, dtype, key, _, count = identifier
        record = self.archive.getinfo(f"{self.root}/data/{key}")
        length = count * dtype.itemsize
        if record.compress_type != zipfile.ZIP_STORED or record.file_size < length:
            raise ConversionError(f"{self.path.name} is damaged: its record {record.filename} is not {length} bytes.")
        with self.path.open("rb") as file:
            file.seek(record.header_offset)
            name_length, extra_length = struct.unpack("<26xHH", file.read(30))
        start = record.header_offset + 30 + name_length + extra_length
        return dtype, self.whole[start : start + length]

    @staticmethod
    def _tensor(storage: tuple, offset: int, size: tuple, stride: tuple, *_) -> torch.Tensor:
        dtype, untyped = storage
        return torch.empty(0, dtype=dtype).set_(untyped, offset, size, stride)


def _read_torchscript(path: Path) -> dict[str, torch.Tensor]:
    with zipfile.ZipFile(path) as archive:
        pickled = next(name for name in archive.namelist() if name.split("/", 1)[-1] == "data.pkl")
        root = pickled.rsplit("/", 1)[0]
        try:
            with archive.open(pickled) as file:
                module = _TensorsOfArchive(file, path, archive, root).load()
        except (pickle.UnpicklingError, AttributeError, KeyError, TypeError, RuntimeError) as error:
            raise ConversionError(
                f"{path.name} cannot be read as a TorchScript archive: {error}. {_REMEDY}"
            ) from error
    tensors: dict[str, torch.Tensor] = {}

    def walk(item: Any, name: str):
        if isinstance(item, torch.Tensor):
            tensors[name] = item
        elif isinstance(item, _ScriptModule):
            for attribute, value in item.attributes.items():
                walk(value, f"{name}.{attribute}" if name else attribute)

    walk(module, "")
    return tensors


def _unwrap(file: CheckpointFile, content: Any):
    """Finds the state dict in what was read."""
    name = file.path.name
    while isinstance(content, dict):
        wrapper = next((key for key in _WRAPPERS if isinstance(content.get(key), dict)), None)
        if wrapper is None:
            break
        file.unwrapped.append(wrapper)
        file.beside += sorted(str(key) for key in content if key != wrapper)
        content = content[wrapper]
    if not isinstance(content, dict) or not content:
        raise ConversionError(
            f"{name} holds a {type(content).__name__} and no named tensors; accepted is a state dict, or one under "
            f"{', '.join(map(repr, _WRAPPERS))}."
        )
    others = [f"{key!r} ({type(value).__name__})" for key, value in content.items() if not torch.is_tensor(value)]
    if others:
        raise ConversionError(
            f"{name} holds entries that are no tensors: {', '.join(others[:5])}; accepted is a state dict, or one under "
            f"{', '.join(map(repr, _WRAPPERS))}."
        )
    while prefix := next((prefix for prefix in _PREFIXES if all(key.startswith(prefix) for key in content)), None):
        file.unwrapped.append(prefix)
        content = {key.removeprefix(prefix): value for key, value in content.items()}
    file.tensors = _apart({key: value.detach() for key, value in content.items()})


def _apart(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies those whose memory another has too, which would be trained together and which safetensors does not write."""
    apart, taken = dict(tensors), 0
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].data_ptr()):
        if tensor.numel() == 0:
            continue
        last = sum((length - 1) * stride for length, stride in zip(tensor.shape, tensor.stride(), strict=True))
        # An expanded one has entries that share memory among themselves.
        if tensor.data_ptr() < taken or last + 1 < tensor.numel():
            apart[name] = tensor.clone(memory_format=torch.contiguous_format)
        taken = max(taken, tensor.data_ptr() + (last + 1) * tensor.element_size())
    return apart


__all__ = ["CheckpointFile", "file_sha256", "read_checkpoint"]
