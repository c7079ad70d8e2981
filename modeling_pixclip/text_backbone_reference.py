# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Checkpoints without the LLM: where a text backbone comes from, stored in place of its weights."""

import hashlib
import json
import os
import re
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import CommitOperationDelete, HfApi, try_to_load_from_cache
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModel
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel

from .text_backbone_training import is_adapter


# What a library version, a way of loading or this library writes; no property of the weights.
VOLATILE = frozenset(
    "_commit_hash _name_or_path architectures auto_map dtype is_causal torch_dtype transformers_version use_cache".split()
)
WEIGHTS_FILE = re.compile(r"model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json")
DOWNLOAD_OPTIONS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


def _unlike_default(values: dict, defaults: dict) -> dict:
    different = {}
    for name, value in values.items():
        default = defaults.get(name)
        if name in VOLATILE or (name in defaults and value == default):
            continue
        if isinstance(value, dict) and isinstance(default, dict):
            value = _unlike_default(value, default)
        different[name] = value
    return different


def config_fields(config: PreTrainedConfig) -> dict[str, Any]:
    """What tells a configuration from others of its type, whichever version of Transformers read it."""
    # Without defaults, as a later version may add fields.
    return {"model_type": config.model_type, **_unlike_default(config.to_dict(), type(config)().to_dict())}


def config_sha256(config: PreTrainedConfig) -> str:
    """
    Hash of a backbone's configuration, by which another backbone under the same name is noticed.

    Args:
        config ([`PreTrainedConfig`]): Configuration of a text backbone.

    Example:
        >>> from transformers import LlamaConfig
        >>> from modeling_pixclip.text_backbone_reference import config_sha256
        >>> config_sha256(LlamaConfig(dtype="bfloat16")) == config_sha256(LlamaConfig())
        True
    """
    text = json.dumps(config_fields(config), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def backbone_source(name: str, config: PreTrainedConfig) -> dict[str, str | None]:
    """
    Where a text backbone was loaded from, as kept in [`PixCLIPTextConfig`].

    Args:
        name (`str`): Folder or Hub id that was given to `from_pretrained`.
        config ([`PreTrainedConfig`]): The configuration found there.

    Returns:
        `dict`: `folder` (absolute), or `repo_id` and `revision` (commit); and `config_sha256`.
    """
    name = os.fspath(name)
    if os.path.isdir(name):
        return {"folder": os.path.realpath(name), "config_sha256": config_sha256(config)}
    cached = try_to_load_from_cache(name, "config.json")
    revision = Path(cached).parent.name if isinstance(cached, str) else None
    return {"repo_id": name, "revision": revision, "config_sha256": config_sha256(config)}


def load_complete(name: str | os.PathLike, config: PreTrainedConfig, **options) -> PreTrainedModel:
    """
    A text backbone of which every weight is in its checkpoint.

    Args:
        name (`str`): Folder or Hub id.
        config ([`PreTrainedConfig`]): Its configuration.
        **options: Those of `AutoModel.from_pretrained`.

    Raises:
        OSError: If it cannot be read.
        ValueError: If weights are missing or of another shape.
    """
    try:
        backbone, info = AutoModel.from_pretrained(name, config=config, output_loading_info=True, **options)
    except SafetensorError as error:
        raise OSError(f"a file of {os.fspath(name)!r} is damaged: {error}") from error
    # BERT's kin have a pooler on top of the states that are pooled here; checkpoints of language models have none.
    missing = sorted(key for key in info["missing_keys"] if not key.startswith("pooler."))
    mismatched = sorted(str(key) for key in info["mismatched_keys"])
    if missing or mismatched:
        raise ValueError(
            f"The text backbone {os.fspath(name)!r} is incomplete: {len(missing)} weights are missing {missing[:5]}, "
            f"{len(mismatched)} have another shape {mismatched[:5]}. Take a complete checkpoint of the same configuration."
        )
    return backbone


def stale_weights(there: Iterable[str], kept: Iterable[str]) -> list[str]:
    """
    Files of weights beside others: Transformers takes model.safetensors before shards, whichever was pushed last.

    Args:
        there (`Iterable[str]`): Paths of the files in a repository.
        kept (`Iterable[str]`): Those that were just written.

    Returns:
        `list[str]`: Those of `there`, not in a subfolder, that hold or list weights and are not in `kept`.

    Example:
        >>> from modeling_pixclip.text_backbone_reference import stale_weights
        >>> stale_weights(["config.json", "model.safetensors"], ["model-00001-of-00001.safetensors"])
        ['model.safetensors']
    """
    kept = set(kept)
    return sorted(name for name in there if name not in kept and WEIGHTS_FILE.fullmatch(name))


def _name(source: dict[str, str | None]) -> str:
    return source.get("folder") or source["repo_id"]


def _described(source: dict[str, str | None]) -> str:
    if "folder" in source:
        return f"folder {source['folder']!r}"
    return f"{source['repo_id']!r} at revision {source['revision'] or 'main'!r}"


def _check_same(found: PreTrainedConfig, config: PreTrainedConfig, name: str):
    """Refuses a backbone with another configuration than the one a checkpoint refers to."""
    source = config.backbone_source
    width = found.get_text_config().hidden_size
    if width != config.hidden_size:
        raise ValueError(
            f"The text backbone {name} is {width} wide, this checkpoint was made with one {config.hidden_size} wide "
            f"({_described(source)}). Pass that one as text_backbone."
        )
    if config_sha256(found) == source["config_sha256"]:
        return
    own, expected = config_fields(found), config_fields(config.backbone_config)
    different = {
        key: f"{own.get(key, 'default')} instead of {expected.get(key, 'default')}"
        for key in sorted({*own, *expected})
        if own.get(key) != expected.get(key)
    }
    raise ValueError(
        f"The text backbone {name} is not the one this checkpoint was made with ({_described(source)}): its "
        f"configuration has another hash; different are {different}. Pass the original one as text_backbone."
    )


def _check_kind(text_backbone: Any):
    if not isinstance(text_backbone, (str, os.PathLike, PreTrainedModel, type(None))):
        raise TypeError(
            f"text_backbone is a {type(text_backbone).__name__}; accepted are a folder, a Hub id and a loaded Transformers "
            "model (of a PeftModel: what merge_and_unload() returns)."
        )


def _given_backbone(text_backbone: PreTrainedModel, config: PreTrainedConfig) -> PreTrainedModel:
    """A loaded model as the backbone, in the direction of the text tower."""
    backbone = text_backbone.base_model
    if (is_causal := getattr(config.backbone_text_config, "is_causal", None)) is not None:
        backbone.config.get_text_config().is_causal = is_causal
    return backbone


def _load_new(
    text_backbone: str | os.PathLike | PreTrainedModel, config: PreTrainedConfig, name: str, **options
) -> PreTrainedModel:
    """A backbone for the text tower of the checkpoint `name`, which has none and whose configuration then tells of it."""
    if loaded := isinstance(text_backbone, PreTrainedModel):
        found, described = text_backbone.base_model.config, f"of type {type(text_backbone).__name__}"
    else:
        code = {key: options[key] for key in options if key not in ("dtype", "device_map")}
        found, described = AutoConfig.from_pretrained(text_backbone, **code), repr(os.fspath(text_backbone))
    width = getattr(found.get_text_config(), "hidden_size", None)
    if width != config.hidden_size:
        raise ValueError(
            f"The text backbone {described} is {width} wide, the text tower of {os.fspath(name)!r} takes vectors "
            f"{config.hidden_size} wide. Pass the LLM that its adapter was trained on as text_backbone."
        )
    # Made anew, so that the backbone is checked and set to the tower's direction.
    fields = {field: getattr(config, field) for field in ("bidirectional", "pooling", "padding_free")}
    config.backbone_config = type(config)(backbone_config=found, **fields).backbone_config
    if loaded:
        config.backbone_source = None
        return _given_backbone(text_backbone, config)
    config.backbone_source = backbone_source(text_backbone, found)
    return load_complete(text_backbone, config.backbone_config, **options)


def _load_referenced(
    text_backbone: str | os.PathLike | PreTrainedModel | None, config: PreTrainedConfig, name: str, **options
) -> PreTrainedModel:
    """The backbone that the checkpoint `name` refers to, or the one the user gives in its place."""
    if isinstance(text_backbone, PreTrainedModel):
        given = f"of type {type(text_backbone).__name__}, given as text_backbone,"
        _check_same(text_backbone.base_model.config, config, given)
        return _given_backbone(text_backbone, config)
    source = config.backbone_source
    if text_backbone is None and "folder" not in source:
        options["revision"] = source["revision"]
    found_in = _name(source) if text_backbone is None else os.fspath(text_backbone)
    code = {key: options[key] for key in options if key not in ("dtype", "device_map")}
    try:
        if text_backbone is None and "folder" in source and not os.path.isdir(found_in):
            raise FileNotFoundError(f"there is no such folder: {found_in}")
        found = AutoConfig.from_pretrained(found_in, **code)
        _check_same(found, config, repr(found_in))
        return load_complete(found_in, config.backbone_config, **options)
    except OSError as error:
        raise OSError(
            f"{name!r} holds no text backbone; it refers to {_described(source)}, and {found_in!r} cannot be loaded: "
            f"{error}\nDownload it, or pass text_backbone=: a folder, a Hub id or a loaded model."
        ) from error


def _single_device(device_map: Any) -> Any:
    """The one device of a device map, or `None` where Transformers is to find or share out devices."""
    if isinstance(device_map, dict):
        return device_map[""] if list(device_map) == [""] else None
    return None if device_map in ("auto", "balanced", "balanced_low_0", "sequential") else device_map


class TextBackboneCheckpoints:
    """
    Part of the models with a text backbone: saves and loads checkpoints that name the backbone and leave out its weights.

    Example:
        >>> from modeling_pixclip import PixCLIPTextModel
        >>> from modeling_pixclip.text_backbone_reference import TextBackboneCheckpoints
        >>> issubclass(PixCLIPTextModel, TextBackboneCheckpoints)
        True
    """

    @property
    def _text_config(self) -> PreTrainedConfig:
        return getattr(self.config, "text_config", self.config)

    def initialize_weights(self):
        """Of what a checkpoint lacks; first of the backbone, by the rules of its own class."""
        backbone = getattr(self, "text_model", self).backbone
        # As a part of code outside of the library, layers without weights of their own would be passed over, such as
        # CLIP's, which set those of their parts.
        if backbone is not None and not backbone.is_custom_code():
            backbone.initialize_weights()
        super().initialize_weights()

    @property
    def _keys_to_ignore_on_save(self) -> set[str]:
        # Read by save_pretrained, and by the Trainer when it resumes.
        if self._text_config.backbone_in_checkpoint:
            return set()
        prefix = "text_model.backbone." if hasattr(self, "text_model") else "backbone."
        return {key for key in self.state_dict() if key.startswith(prefix) and not is_adapter(key)}

    @_keys_to_ignore_on_save.setter
    def _keys_to_ignore_on_save(self, keys: set[str]):
        """Transformers sets what it finds on the class and on parts, and there is nothing."""

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike | None,
        *args,
        text_backbone: str | os.PathLike | PreTrainedModel | None = None,
        **kwargs,
    ):
        r"""
        Loads a checkpoint, as in every Transformers model, and the text backbone that it may refer to.

        Args:
            pretrained_model_name_or_path (`str`): Folder or Hub id.
            text_backbone (`str` or [`PreTrainedModel`], *optional*): Folder or Hub id of the backbone of a checkpoint
                without one, or the loaded backbone, which becomes part of the model: it takes the model's direction and
                attention, and no longer generates. Defaults to what the checkpoint names. A text tower that takes
                vectors alone (`backbone_embeds_only`) has a backbone from then on, in the dtype of its checkpoint.
            **kwargs: Those of [`PreTrainedModel.from_pretrained`]. An explicit `dtype` is that of all weights; without
                it the backbone has its own dtype.

        Raises:
            OSError: If the backbone cannot be loaded; the message says which one, and its revision.
            ValueError: If the backbone has another width or configuration than the one the checkpoint was made with, lacks
                weights, or `text_backbone` is given for a checkpoint that holds one.
            TypeError: If `text_backbone` is something else.

        Example:
            >>> import tempfile
            >>> from transformers import LlamaConfig
            >>> from modeling_pixclip import PixCLIPTextConfig, PixCLIPTextModel
            >>> shape = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}
            >>> config = PixCLIPTextConfig(backbone_config=LlamaConfig(vocab_size=99, **shape), projection_dim=16)
            >>> folder = tempfile.mkdtemp()
            >>> PixCLIPTextModel(config).save_pretrained(folder)
            >>> model = PixCLIPTextModel.from_pretrained(folder)
        """
        given = {key: kwargs.pop(key) for key in ("dtype", "torch_dtype") if key in kwargs}
        if not isinstance(kwargs.get("config"), PreTrainedConfig):
            path = kwargs.pop("config", None) or pretrained_model_name_or_path
            names = {field.name for field in fields(cls.config_class)} | {
                "attn_implementation",
                "experts_implementation",
            }
            changes = {key: kwargs.pop(key) for key in names & kwargs.keys()}
            options = {key: kwargs[key] for key in DOWNLOAD_OPTIONS if key in kwargs}
            kwargs["config"] = cls.config_class.from_pretrained(path, **options, **changes)
        config = getattr(kwargs["config"], "text_config", kwargs["config"])
        kwargs.update(given)
        dtype = next((value for value in given.values() if value not in (None, "auto")), None)
        if dtype is not None:
            config.backbone_dtype = None
        _check_kind(text_backbone)
        if config.backbone_source is not None and "folder" in config.backbone_source:
            cls._resolve_folder(config, pretrained_model_name_or_path, kwargs.get("subfolder", ""))
        if config.backbone_source is not None:
            config.backbone_config.name_or_path = _name(config.backbone_source)
        lacks_backbone = config.backbone_embeds_only
        if lacks_backbone and text_backbone is None or config.backbone_in_checkpoint and not lacks_backbone:
            if text_backbone is not None:
                raise ValueError(
                    f"text_backbone was given, but {pretrained_model_name_or_path!r} holds the weights of its text "
                    "backbone. Leave it out."
                )
            loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
            cls._finish_loading(loaded)
            return loaded
        if kwargs.get("quantization_config") is not None:
            raise ValueError(
                "quantization_config does not reach a text backbone that a checkpoint refers to. Load the backbone with "
                "it, and pass it as text_backbone."
            )
        if "attn_implementation" in kwargs:
            kwargs["config"]._attn_implementation = kwargs.pop("attn_implementation")
        device_map = kwargs.get("device_map")
        # One that the checkpoint does not name comes in the dtype it was saved in, as in from_vision_text_pretrained.
        own_dtype = (kwargs["config"].dtype or torch.get_default_dtype()) if config.backbone_source else "auto"
        backbone = (_load_referenced if config.backbone_source else _load_new)(
            text_backbone,
            config,
            pretrained_model_name_or_path,
            dtype=dtype or config.backbone_dtype or own_dtype,
            device_map=_single_device(device_map),
            **{
                key: kwargs[key]
                for key in ("cache_dir", "force_download", "local_files_only", "proxies", "token", "trust_remote_code")
                if key in kwargs
            },
        )
        for module in backbone.modules():
            # Buffers that are not saved are made anew, and so their modules must count as new.
            module._is_hf_initialized = False
        for tensor in (*backbone.parameters(), *backbone.buffers()):
            tensor._is_hf_initialized = True
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, backbone=backbone, **kwargs)
        if lacks_backbone:
            tower = loaded[0] if isinstance(loaded, tuple) else loaded
            getattr(tower, "text_model", tower).check_bidirectional()
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if device_map is not None and not hasattr(model, "hf_device_map"):
            backbone.to(model.device)
        cls._finish_loading(loaded)
        return loaded

    @staticmethod
    def _finish_loading(loaded: PreTrainedModel | tuple):
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        tower = getattr(model, "text_model", model)
        tower.mark_trainable()
        tower.remember_weights()

    @staticmethod
    def _resolve_folder(config: PreTrainedConfig, name: str | os.PathLike | None, subfolder: str):
        """Makes the folder of a backbone absolute, which a checkpoint names relative to itself."""
        folder = config.backbone_source["folder"]
        if os.path.isabs(folder):
            return
        if name is not None and os.path.isdir(name):
            folder = os.path.realpath(os.path.join(os.path.realpath(os.path.join(name, subfolder)), folder))
            config.backbone_source = {**config.backbone_source, "folder": folder}
        elif config.backbone_in_checkpoint or config.backbone_embeds_only:
            # From the Hub: whose folder it was is of no use here.
            config.backbone_source = None

    def save_pretrained(
        self, save_directory: str | os.PathLike, *args, include_text_backbone: bool | None = None, **kwargs
    ):
        r"""
        Saves the model, as in every Transformers model, with or without the text backbone.

        Args:
            save_directory (`str`): The folder.
            include_text_backbone (`bool`, *optional*): `False` stores where the backbone comes from in config.json (Hub
                id and commit, or folder relative to `save_directory`; hash of its configuration) in place of its weights.
                LoRA adapters are saved either way. Defaults to `config.backbone_in_checkpoint` of the text tower, which
                the Trainer's checkpoints follow too.
            **kwargs: Those of [`PreTrainedModel.save_pretrained`].

        Raises:
            ValueError: If the backbone is to be left out, but its weights are not those it was loaded with, it is not known
                where it comes from, or the checkpoint is pushed to the Hub while the backbone lies in a folder. The
                Trainer's `push_to_hub` uploads a folder, past this check.

        Example:
            >>> from modeling_pixclip import PixCLIPModel
            >>> model = PixCLIPModel.from_vision_text_pretrained(
            ...     "openai/clip-vit-base-patch16", "HuggingFaceTB/SmolLM2-135M-Instruct"
            ... )  # doctest: +SKIP
            >>> model.save_pretrained("pixclip-without-llm", include_text_backbone=False)  # doctest: +SKIP
        """
        config = self._text_config
        tower = getattr(self, "text_model", self)
        known = config.backbone_source is not None and "changed" not in config.backbone_source
        if known and tower.weights_changed(kwargs.get("state_dict")):
            tower._backbone_changed("its weights were changed")
        if tower.backbone is None and include_text_backbone:
            tower._check_backbone("include_text_backbone=True is about its weights")
        before = (config.backbone_in_checkpoint, config.backbone_dtype, config.backbone_source)
        name = config.backbone_config.name_or_path
        if include_text_backbone is not None:
            config.backbone_in_checkpoint = include_text_backbone
        try:
            if tower.backbone is not None:
                if not config.backbone_in_checkpoint:
                    self._check_reference(kwargs.get("push_to_hub", False))
                own, dtype = tower.dtype, tower.backbone.dtype
                config.backbone_dtype = None if dtype == own else str(dtype).removeprefix("torch.")
            if config.backbone_source is not None and "folder" in config.backbone_source:
                saved_in = os.path.realpath(save_directory)
                folder = Path(os.path.relpath(config.backbone_source["folder"], saved_in)).as_posix()
                # A relative folder tells nothing on the Hub.
                pushed = kwargs.get("push_to_hub", False)
                config.backbone_source = None if pushed else {**config.backbone_source, "folder": folder}
            # Others are not told how folders are named here.
            known = config.backbone_source is not None
            config.backbone_config.name_or_path = _name(config.backbone_source) if known else os.path.basename(name)
            super().save_pretrained(save_directory, *args, **kwargs)
        finally:
            config.backbone_in_checkpoint, config.backbone_dtype, config.backbone_source = before
            config.backbone_config.name_or_path = name

    def push_to_hub(self, *args, **kwargs):
        """Pushes the model, as in every Transformers model; a folder it got its backbone from is not told."""
        config = self._text_config
        source = config.backbone_source
        if source is not None and "folder" in source:
            if not (config.backbone_in_checkpoint or config.backbone_embeds_only):
                self._check_reference(push_to_hub=True)
            config.backbone_source = None
        try:
            return super().push_to_hub(*args, **kwargs)
        finally:
            config.backbone_source = source

    def _upload_modified_files(self, working_dir: str | os.PathLike, repo_id: str, *args, **kwargs):
        """That of Transformers, for `push_to_hub`; weights of an earlier push in other files are deleted after it."""
        commit = super()._upload_modified_files(working_dir, repo_id, *args, **kwargs)
        written = os.listdir(working_dir)
        # Of adapters, or of a variant, which lie beside the weights.
        if not any(map(WEIGHTS_FILE.fullmatch, written)):
            return commit
        api, revision = HfApi(token=kwargs.get("token")), commit.pr_revision or kwargs.get("revision")
        stale = stale_weights(api.list_repo_files(repo_id, revision=revision), written)
        if not stale:
            return commit
        deletion = api.create_commit(
            repo_id,
            [CommitOperationDelete(name) for name in stale],
            commit_message="Delete weights that would be loaded in place of those just pushed",
            revision=revision,
            parent_commit=commit.oid,
        )
        # That of a pull request tells where it is.
        return commit if commit.pr_revision else deletion

    def _check_reference(self, push_to_hub: bool):
        config = self._text_config
        source = config.backbone_source
        remedy = "Save with include_text_backbone=True."
        if source is None:
            raise ValueError(
                "the text backbone cannot be left out: the model does not know where it comes from, as it was made from a "
                f"configuration or a loaded backbone. Build it with from_vision_text_pretrained. {remedy}"
            )
        if "changed" in source:
            raise ValueError(
                f"the text backbone cannot be left out: {source['changed']}, so its weights are not those of "
                f"{_described(source)} any more. {remedy}"
            )
        if config_sha256(config.backbone_config) != source["config_sha256"]:
            raise ValueError(
                "the text backbone cannot be left out: its configuration is not that of "
                f"{_described(source)} any more. {remedy}"
            )
        if push_to_hub and "folder" in source:
            raise ValueError(
                f"the text backbone cannot be left out of a checkpoint on the Hub: it comes from {_described(source)}, "
                f"which others do not have. {remedy}"
            )


__all__ = [
    "TextBackboneCheckpoints",
    "backbone_source",
    "config_fields",
    "config_sha256",
    "load_complete",
    "stale_weights",
]
