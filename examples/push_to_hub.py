# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""
Pushes a saved model to the Hub: weights, processor, code and card, in one commit.

    python examples/push_to_hub.py --folder runs/coco_regions --repo_id me/pixclip --tag v1 --dry_run

Before anything is sent, it loads the folder as others will and makes sure that they can: all weights are there, the text
backbone is not in a folder of this machine, the code and the card lie beside them. `--dry_run` stops there and tells what
would be uploaded. Optimizer, logs and checkpoints of a training stay here. A push that was interrupted leaves the
repository as it was; the same command does it again, without what was uploaded already.
"""

import fnmatch
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard, constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError
from transformers import AutoConfig, AutoImageProcessor, AutoProcessor, HfArgumentParser, PreTrainedConfig
from transformers.dynamic_module_utils import get_relative_import_files

from modeling_pixclip import CardDetails, PixCLIPForPreTraining, PixCLIPModel, render_model_card
from modeling_pixclip.model_card import merge_model_cards


ENDPOINT = Path(__file__).with_name("endpoint")
ENDPOINT_FILES = ("handler.py", "requirements.txt")
WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json")
# Weights of others that Transformers would take in place of ours, or download beside them.
STALE = (*WEIGHTS, "pytorch_model*.bin", "pytorch_model.bin.index.json")
CARD = "README.md"
UPLOADED = (
    *WEIGHTS,
    "config.json",
    "generation_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    # What converts back into the format that it came from.
    "conversion.safetensors",
    CARD,
    "LICENSE*",
)


class NotReady(ValueError):
    """The folder, or the repository, is not in a state to push."""


@dataclass
class PushArguments:
    folder: str = field(metadata={"help": "Folder of a saved model with its processor."})
    repo_id: str = field(metadata={"help": "Repository, 'me/name' or 'organisation/name'; made if there is none."})
    private: bool = field(default=False, metadata={"help": "Make the repository private."})
    revision: str | None = field(
        default=None, metadata={"help": "Branch to push to, made from main if there is none."}
    )
    tag: str | None = field(default=None, metadata={"help": "Name for the pushed state, for `revision=` of others."})
    commit_message: str = field(default="Upload PixCLIP", metadata={"help": "Title of the commit."})
    endpoint_handler: bool = field(
        default=False, metadata={"help": "Upload handler.py and requirements.txt of Inference Endpoints as well."}
    )
    write_card: bool = field(
        default=False, metadata={"help": "Upload a card made from the configuration; one that is there is completed."}
    )
    card_details: dict | str | None = field(
        default=None, metadata={"help": 'Fields of CardDetails (JSON) for it, e.g. {"license": "apache-2.0"}.'}
    )
    no_card: bool = field(default=False, metadata={"help": "Push without a card, if the folder has none."})
    include: list[str] = field(
        default_factory=list, metadata={"help": "Names or patterns of further files of the folder to upload."}
    )
    dry_run: bool = field(default=False, metadata={"help": "Check and tell all, send nothing."})


@dataclass
class Upload:
    """What is to be sent: files by their path in the repository, a path here or their content."""

    files: dict[str, Path | bytes]
    left_out: list[str]

    def size(self, name: str) -> int:
        file = self.files[name]
        return len(file) if isinstance(file, bytes) else file.stat().st_size


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    try:
        upload = prepare(options)
        tell(upload, options)
        if options.dry_run:
            print("\nDry run: nothing was sent. Without --dry_run, the same command pushes it.")
            return 0
        url = push(upload, options)
    except NotReady as error:
        print(f"\n{options.folder} was not pushed: {error}", file=sys.stderr)
        return 1
    revision = options.tag or options.revision
    name = f'"{options.repo_id}"' + (f', revision="{revision}"' if revision else "")
    print(f"\nPushed: {url}\nOthers load it with AutoModel.from_pretrained({name}, trust_remote_code=True)")
    return 0


def parse_arguments(arguments: list[str]) -> PushArguments:
    parser = HfArgumentParser(PushArguments, description=__doc__)
    (options,) = parser.parse_args_into_dataclasses(arguments)
    try:
        validate_repo_id(options.repo_id)
        if options.card_details is not None:
            details = (
                json.loads(options.card_details) if isinstance(options.card_details, str) else options.card_details
            )
            options.card_details = CardDetails(**{"repo_id": options.repo_id, **details})
            options.write_card = True
    except HFValidationError as error:
        parser.error(f"--repo_id {options.repo_id} is no name of a repository: {error}")
    except (TypeError, ValueError) as error:
        parser.error(f"--card_details cannot be used: {error}")
    if options.no_card and options.write_card:
        parser.error("--no_card and --write_card (or --card_details) exclude each other.")
    return options


# What lies in the folder


def prepare(options: PushArguments) -> Upload:
    """
    Checks the folder and finds what to upload.

    Raises:
        NotReady: If others could not load it, or a file that was asked for is missing.
    """
    folder = Path(options.folder)
    config = read_config(folder)
    processor = check_loads(folder, config)
    code = needed_code(folder)
    patterns = (*UPLOADED, *options.include)
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    chosen = [name for name in names if name in code or any(fnmatch.fnmatchcase(name, p) for p in patterns)]
    for pattern in options.include:
        if not fnmatch.filter(names, pattern):
            raise NotReady(f"--include {pattern} matches none of its files.")
    files: dict[str, Path | bytes] = {name: folder / name for name in chosen}
    files["config.json"] = without_local_folder(folder / "config.json")
    card = card_of(folder, options, config, processor)
    if card is not None:
        files[CARD] = card
    if options.endpoint_handler:
        for name in ENDPOINT_FILES:
            if not (ENDPOINT / name).is_file():
                raise NotReady(
                    f"--endpoint_handler needs {ENDPOINT / name}, which is missing. Take it from the repository."
                )
            files[name] = ENDPOINT / name
    return Upload(dict(sorted(files.items())), sorted({*names} - {*files}))


def read_config(folder: Path) -> PreTrainedConfig:
    if not (folder / "config.json").is_file():
        raise NotReady("it has no config.json. Give the folder that save_pretrained or the Trainer wrote.")
    config = AutoConfig.from_pretrained(folder)
    if config.model_type != "pixclip":
        raise NotReady(
            f"it holds a model of type {config.model_type!r}; accepted is 'pixclip', towers included in it."
        )
    text, source = config.text_config, config.text_config.backbone_source or {}
    if not text.backbone_in_checkpoint and "folder" in source:
        raise NotReady(
            f"its text backbone lies in the folder {source['folder']!r}, which others do not have. Load the model, and "
            "save it with include_text_backbone=True; or build it with a backbone from the Hub."
        )
    return config


def check_loads(folder: Path, config: PreTrainedConfig) -> Any:
    """Loads what others will load; returns the processor."""
    model_class = PixCLIPModel if config.architectures == ["PixCLIPModel"] else PixCLIPForPreTraining
    try:
        _, info = model_class.from_pretrained(folder, output_loading_info=True, dtype="auto")
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise NotReady(f"the model cannot be loaded: {error}") from error
    wrong = {kind: sorted(map(str, keys)) for kind, keys in info.items() if keys and kind.endswith("_keys")}
    if wrong:
        told = "; ".join(f"{len(keys)} {kind.replace('_', ' ')}, such as {keys[0]}" for kind, keys in wrong.items())
        raise NotReady(f"its weights do not fit its configuration: {told}. Save the model again.")
    has_tokenizer = (folder / "tokenizer_config.json").is_file()
    try:
        return (AutoProcessor if has_tokenizer else AutoImageProcessor).from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise NotReady(
            f"its processor cannot be loaded: {error}\nSave it beside the model: processor.save_pretrained({str(folder)!r})."
        ) from error


def needed_code(folder: Path) -> set[str]:
    """The Python files that its configurations name, and what these import."""
    modules = set()
    for path in folder.glob("*.json"):
        if path.name in ("config.json", "processor_config.json", "preprocessor_config.json"):
            modules |= set(modules_of(json.loads(path.read_text(encoding="utf-8"))))
    found = set()
    for module in modules:
        try:
            found |= {
                f"{module}.py",
                *(Path(file).name for file in get_relative_import_files(folder / f"{module}.py")),
            }
        except FileNotFoundError as error:
            raise NotReady(
                f"{Path(error.filename).name} is missing, without which it loads only where PixCLIP is installed. Load "
                "model and processor, and save them again."
            ) from error
    if "modeling_pixclip.py" not in found:
        raise NotReady("its config.json names no code (auto_map). Load the model, and save it again.")
    return found


def modules_of(value: Any):
    if not isinstance(value, dict):
        return
    for key, item in value.items():
        if key == "auto_map":
            for references in item.values():
                group = references.values() if isinstance(references, dict) else [references]
                yield from (reference.partition(".")[0] for reference in group if isinstance(reference, str))
        elif key == "custom_pipelines":
            yield from (pipeline["impl"].partition(".")[0] for pipeline in item.values())
        else:
            yield from modules_of(item)


def without_local_folder(path: Path) -> bytes:
    """config.json without the folder that the backbone was loaded from; its weights are in the checkpoint."""
    content = path.read_bytes()
    config = json.loads(content)
    text = config["text_config"]
    if "folder" not in (text.get("backbone_source") or {}):
        return content
    text["backbone_source"] = None
    for name in ("_name_or_path", "name_or_path"):
        if name in text["backbone_config"]:
            text["backbone_config"][name] = Path(text["backbone_config"][name]).name
    return (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()


def card_of(folder: Path, options: PushArguments, config: PreTrainedConfig, processor: Any) -> bytes | None:
    """The card to upload in place of the folder's, `None` for that one, or none at all."""
    path = folder / CARD
    if options.write_card:
        details = options.card_details or CardDetails(repo_id=options.repo_id)
        has_tokenizer = hasattr(processor, "tokenizer")
        card = render_model_card(config, processor if has_tokenizer else None, details)
        if path.is_file():
            try:
                card = merge_model_cards(path.read_text(encoding="utf-8-sig"), card)
            except ValueError as error:
                raise NotReady(f"its {CARD} cannot be completed: {error}") from error
        return str(card).encode()
    if not path.is_file():
        if options.no_card:
            return None
        raise NotReady(
            f"it has no card ({CARD}). Let one be written (--write_card, or --card_details "
            '\'{"license": "apache-2.0"}\'), or push without (--no_card).'
        )
    try:
        ModelCard.load(path)
    except Exception as error:
        raise NotReady(f"the metadata of its {CARD} cannot be read: {error}") from error
    return None


def tell(upload: Upload, options: PushArguments):
    total = sum(map(upload.size, upload.files))
    kind = "private" if options.private else "public"
    print(f"{options.folder} to {options.repo_id} ({kind} if it is new), {options.revision or 'main'}:")
    for name in upload.files:
        print(f"{upload.size(name):>16,} {name}")
    print(f"{total:>16,} bytes in {len(upload.files)} files")
    if upload.left_out:
        print(f"{len(upload.left_out)} files stay here: {', '.join(upload.left_out)}")


# The Hub


def push(upload: Upload, options: PushArguments) -> str:
    """
    Makes one commit of all files.

    Returns:
        Address of the commit.

    Raises:
        NotReady: If the repository is not there for this user, public against their wish, or changes meanwhile.
    """
    if constants.HF_HUB_OFFLINE:
        raise NotReady("the Hub is switched off by HF_HUB_OFFLINE. Unset it.")
    api, repo_id = HfApi(), options.repo_id
    try:
        api.create_repo(repo_id, private=options.private or None, exist_ok=True)
        if options.private and not api.repo_info(repo_id).private:
            raise NotReady(
                f"--private is given, but {repo_id} exists and is public. Change it on the Hub, or take another."
            )
        branch = options.revision or "main"
        if options.revision is not None:
            api.create_branch(repo_id, branch=branch, exist_ok=True)
        refs = api.list_repo_refs(repo_id)
        tags = {tag.name: tag.target_commit for tag in refs.tags}
        if options.tag in tags:
            raise NotReady(
                f"{repo_id} has a tag {options.tag!r} already, of commit {tags[options.tag]}. Give another name, or leave out "
                "--tag if it names what you push."
            )
        (head,) = [ref.target_commit for ref in refs.branches if ref.name == branch] or [None]
        if head is None:
            raise NotReady(f"{branch!r} is not a branch of {repo_id}, but a tag. Give a branch as --revision.")
        # Weights in other files would be loaded in place of these.
        there = api.list_repo_files(repo_id, revision=head)
        stale = [name for name in there if name not in upload.files and any(fnmatch.fnmatch(name, p) for p in STALE)]
        operations = [
            *(CommitOperationAdd(name, str(f) if isinstance(f, Path) else f) for name, f in upload.files.items()),
            *(CommitOperationDelete(name) for name in stale),
        ]
        commit = api.create_commit(
            repo_id, operations, commit_message=options.commit_message, revision=branch, parent_commit=head
        )
        if options.tag is not None:
            api.create_tag(repo_id, tag=options.tag, revision=commit.oid)
    except (RepositoryNotFoundError, RevisionNotFoundError, HfHubHTTPError) as error:
        status = error.response.status_code
        remedies = {
            401: "Log in with `hf auth login`, or set HF_TOKEN to a token that may write.",
            403: "Take a token that may write to this namespace, or another name.",
            404: "Take a token that may write to this namespace, or another name.",
            412: "Somebody pushed at the same time; look at it, and run the command again.",
        }
        raise NotReady(f"the Hub answered {status} for {repo_id}. {remedies.get(status, error)}") from error
    except ValueError as error:
        raise NotReady(str(error)) from error
    for name in stale:
        print(f"deleted there, as it would be loaded in place of what was pushed: {name}")
    return commit.commit_url


if __name__ == "__main__":
    sys.exit(main())
