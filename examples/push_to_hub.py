# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""
Pushes a saved model to the Hub: weights, processor, code and card, in one commit.

    python examples/push_to_hub.py --folder runs/coco_regions --repo_id me/pixclip --tag v1 --dry_run

Before anything is sent, it loads what it would upload as others will, and makes sure that they can: with the package, and
by the code beside the weights, in a process that cannot import the package. The text backbone must not be in a folder of
this machine (weights of one that others get from the Hub are not loaded), and a card must be there. `--dry_run` stops
there and tells what would be uploaded. Optimizer, logs and checkpoints of a training stay here. A push that was
interrupted leaves the repository as it was; the same command does it again, without what was uploaded already.
"""

import copy
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard, constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id
from safetensors import safe_open
from transformers import AutoConfig, AutoImageProcessor, AutoProcessor, HfArgumentParser, PreTrainedConfig
from transformers.dynamic_module_utils import get_relative_import_files

from modeling_pixclip import CardDetails, PixCLIPForPreTraining, PixCLIPModel, render_model_card
from modeling_pixclip.model_card import merge_model_cards
from modeling_pixclip.text_backbone_reference import stale_weights


ENDPOINT = Path(__file__).with_name("endpoint")
ENDPOINT_FILES = ("handler.py", "requirements.txt")
WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
# Weights of an older format, which some would download beside ours.
PICKLED_WEIGHTS = re.compile(r"pytorch_model(-\d+-of-\d+)?\.bin|pytorch_model\.bin\.index\.json")
CARD = "README.md"
UPLOADED = (
    "config.json",
    "generation_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    # Vocabularies of tokenizers that are not in tokenizer.json alone.
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "spiece.model",
    "spm.model",
    "tekken.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
    # What converts back into the format that it came from.
    "conversion.safetensors",
    CARD,
    "LICENSE",
    "LICENSE.md",
    "LICENSE.txt",
)
# Run by another process, which answers with a line of JSON: the class of the processor, or why it could not be loaded.
LOAD_BY_REMOTE_CODE = """
import json, sys

class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("modeling_pixclip", "processing_pixclip"):
            raise ModuleNotFoundError(f"{name} is not installed here", name=name)

sys.meta_path.insert(0, NotInstalled())

import torch, transformers
from transformers.dynamic_module_utils import get_class_from_dynamic_module

def load(folder, auto_model, auto_processor, with_weights):
    trusted = {"trust_remote_code": True}
    config = transformers.AutoConfig.from_pretrained(folder, **trusted)
    pipelines = (getattr(config, "custom_pipelines", None) or {}).values()
    references = [*config.auto_map.values(), *(pipeline["impl"] for pipeline in pipelines)]
    classes = {reference: get_class_from_dynamic_module(reference, folder) for reference in references}
    if with_weights:
        model, info = getattr(transformers, auto_model).from_pretrained(
            folder, output_loading_info=True, dtype="auto", **trusted
        )
        wrong = {kind: sorted(map(str, keys)) for kind, keys in info.items() if keys and kind.endswith("_keys")}
        if wrong:
            raise ValueError(f"weights do not fit: {wrong}")
    else:
        with torch.device("meta"):
            model = classes[config.auto_map[auto_model]](config)
    processor = getattr(transformers, auto_processor).from_pretrained(folder, **trusted)
    for item in (config, model, processor):
        if not type(item).__module__.startswith("transformers_modules."):
            raise ValueError(f"{type(item).__name__} does not come from the folder's code, but from {type(item).__module__}")

try:
    load(**json.loads(sys.argv[1]))
    answer = None
except Exception as error:
    answer = f"{type(error).__name__}: {error}"
print(json.dumps({"error": answer}))
"""


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
        if not options.dry_run:
            options.repo_id = name_with_owner(options.repo_id)
        upload = prepare(options)
        tell(upload, options)
        if options.dry_run:
            print("\nDry run: nothing was sent. Without --dry_run, the same command pushes it.")
            return 0
        repo_id, commit = push(upload, options)
    except NotReady as error:
        print(f"\n{options.folder} was not pushed: {error}", file=sys.stderr)
        return 1
    print(f"\nPushed: {commit.commit_url}")
    revision = options.tag or options.revision
    if options.tag is not None:
        try:
            with hub_errors(repo_id):
                HfApi().create_tag(repo_id, tag=options.tag, revision=commit.oid)
        except NotReady as error:
            print(f"It was pushed, but its tag {options.tag!r} was not set: {error}", file=sys.stderr)
            return 1
    name = f'"{repo_id}"' + (f', revision="{revision}"' if revision else "")
    print(f"Others load it with AutoModel.from_pretrained({name}, trust_remote_code=True)")
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
            options.card_details = CardDetails(**details)
            options.write_card = True
    except HFValidationError as error:
        parser.error(f"--repo_id {options.repo_id} is no name of a repository: {error}")
    except (TypeError, ValueError) as error:
        parser.error(f"--card_details cannot be used: {error}")
    if options.no_card and options.write_card:
        parser.error("--no_card and --write_card (or --card_details) exclude each other.")
    for option in ("revision", "tag"):
        name = getattr(options, option)
        if name is not None and not is_ref_name(name):
            parser.error(
                f"--{option} {name!r} is no name that git accepts: no spaces, none of ~ ^ : ? * [ \\ @{{ .. //, no part that "
                "starts with a dot or ends in .lock, no - or / at the start, no . or / at the end."
            )
    if options.tag is not None and options.tag == (options.revision or "main"):
        parser.error(f"--tag {options.tag} is the name of the branch. Give another.")
    return options


def is_ref_name(name: str) -> bool:
    """Whether git accepts it for a branch or tag (git-check-ref-format)."""
    parts = name.split("/")
    return (
        not re.search(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{", name)
        and all(part and not part.startswith(".") and not part.endswith(".lock") for part in parts)
        and not name.startswith("-")
        and not name.endswith(".")
        and name not in ("@", "HEAD")
    )


# What lies in the folder


def prepare(options: PushArguments) -> Upload:
    """
    Checks the folder and finds what to upload.

    Raises:
        NotReady: If others could not load it, or a file that was asked for is missing.
    """
    folder = Path(options.folder)
    config = read_config(folder)
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    for pattern in options.include:
        if not any(matches(name, pattern) for name in names):
            raise NotReady(f"--include {pattern} matches none of its files.")
    wanted = {*needed_code(folder), *weights_of(folder)}
    patterns = (*UPLOADED, *options.include)
    chosen = [name for name in names if name in wanted or any(matches(name, pattern) for pattern in patterns)]
    files: dict[str, Path | bytes] = {name: folder / name for name in chosen}
    files["config.json"] = without_local_folder(folder / "config.json")
    if options.endpoint_handler:
        for name in ENDPOINT_FILES:
            if not (ENDPOINT / name).is_file():
                raise NotReady(
                    f"--endpoint_handler needs {ENDPOINT / name}, which is missing. Take it from the repository."
                )
            files[name] = ENDPOINT / name
    with copy_of(files) as copied:
        processor = check_loads(folder, copied, config)
        card = card_of(folder, options, config, processor)
        if card is not None:
            files[CARD] = card
        check_loads_by_remote_code(copied, config)
    return Upload(dict(sorted(files.items())), sorted({*names} - {*files}))


def matches(name: str, pattern: str) -> bool:
    """Whether a pattern names a file; `*` stands for no slash."""
    parts, patterns = name.split("/"), pattern.split("/")
    return len(parts) == len(patterns) and all(map(fnmatchcase, parts, patterns))


def read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise NotReady(f"its {path.name} is no JSON: {error}. Save it again.") from error
    if not isinstance(content, dict):
        raise NotReady(f"its {path.name} holds a {type(content).__name__}, not an object. Save it again.")
    return content


def read_config(folder: Path) -> PreTrainedConfig:
    if not (folder / "config.json").is_file():
        raise NotReady("it has no config.json. Give the folder that save_pretrained or the Trainer wrote.")
    model_type = read_json(folder / "config.json").get("model_type")
    if model_type != "pixclip":
        raise NotReady(f"it holds a model of type {model_type!r}; accepted is 'pixclip', towers included in it.")
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:
        raise NotReady(f"its config.json cannot be used: {error}") from error
    text, source = config.text_config, config.text_config.backbone_source or {}
    if not text.backbone_in_checkpoint and "folder" in source:
        raise NotReady(
            f"its text backbone lies in the folder {source['folder']!r}, which others do not have. Load the model, and "
            "save it with include_text_backbone=True; or build it with a backbone from the Hub."
        )
    return config


def weights_of(folder: Path) -> list[str]:
    """The files of weights that Transformers loads: one, or those that the index names."""
    whole = (folder / WEIGHTS).is_file()
    if not (folder / WEIGHTS_INDEX).is_file():
        return [WEIGHTS]
    shards = read_json(folder / WEIGHTS_INDEX).get("weight_map")
    if not isinstance(shards, dict):
        raise NotReady(f"its {WEIGHTS_INDEX} has no weight_map. Save the model again.")
    names = sorted({str(name) for name in shards.values()})
    missing = [name for name in names if not (folder / name).is_file()]
    if whole and missing:
        # Saved in one file after it was saved in shards, of which Transformers leaves the index.
        return [WEIGHTS]
    if whole:
        raise NotReady(
            f"it holds weights twice, in {WEIGHTS} and in the files that {WEIGHTS_INDEX} names, and Transformers would load the "
            "former, be they older. Delete those that are not wanted."
        )
    if missing:
        raise NotReady(f"{missing[0]} is missing, which its {WEIGHTS_INDEX} names. Save the model again.")
    return [WEIGHTS_INDEX, *names]


@contextmanager
def copy_of(files: dict[str, Path | bytes]) -> Iterator[Path]:
    """A folder of these files alone, for a while."""
    with tempfile.TemporaryDirectory() as temporary:
        # With a name that the code beside weights can be imported under.
        folder = Path(temporary) / "pushed"
        for name, file in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(file, bytes):
                path.write_bytes(file)
                continue
            try:
                # Weights are large, and only read.
                (os.symlink if name.endswith(".safetensors") else shutil.copyfile)(file.resolve(), path)
            except OSError:
                shutil.copyfile(file, path)
        yield folder


def class_of(config: PreTrainedConfig) -> type:
    return PixCLIPModel if config.architectures == ["PixCLIPModel"] else PixCLIPForPreTraining


def refers_to_backbone(config: PreTrainedConfig) -> bool:
    """Whether the text backbone comes from the Hub, where others get it."""
    return not (config.text_config.backbone_in_checkpoint or config.text_config.backbone_embeds_only)


def check_loads(folder: Path, copied: Path, config: PreTrainedConfig) -> Any:
    """Loads what others with the package will load; returns the processor."""
    try:
        if refers_to_backbone(config):
            info = compare_weights(copied, config)
        else:
            _, info = class_of(config).from_pretrained(copied, output_loading_info=True, dtype="auto")
    except Exception as error:
        raise NotReady(f"the model cannot be loaded: {error}".replace(str(copied), str(folder))) from error
    wrong = {kind: sorted(map(str, keys)) for kind, keys in info.items() if keys and kind.endswith("_keys")}
    if wrong:
        told = "; ".join(f"{len(keys)} {kind.replace('_', ' ')}, such as {keys[0]}" for kind, keys in wrong.items())
        raise NotReady(f"its weights do not fit its configuration: {told}. Save the model again.")
    tokenizer = copied / "tokenizer_config.json"
    auto = AutoProcessor if tokenizer.is_file() else AutoImageProcessor
    # Only a tokenizer may have code that the package lacks.
    own_code = tokenizer.is_file() and "auto_map" in read_json(tokenizer)
    try:
        return auto.from_pretrained(copied, trust_remote_code=own_code)
    except Exception as error:
        told = str(error).replace(str(copied), str(folder))
        raise NotReady(
            f"its processor cannot be loaded: {told}\nSave it beside the model: processor.save_pretrained({str(folder)!r})."
        ) from error


def compare_weights(folder: Path, config: PreTrainedConfig) -> dict[str, list[str]]:
    """What is wrong with weights that lack the text backbone, by the names of Transformers; nothing is loaded."""
    with torch.device("meta"):
        model = class_of(config)(copy.deepcopy(config))
    left_out = model._keys_to_ignore_on_save
    expected = {key: list(tensor.shape) for key, tensor in model.state_dict().items() if key not in left_out}
    found = {}
    for name in weights_of(folder):
        if name != WEIGHTS_INDEX:
            with safe_open(folder / name, "pt") as file:
                found |= {key: file.get_slice(key).get_shape() for key in file.keys()}
    return {
        "missing_keys": sorted(expected.keys() - found.keys()),
        "unexpected_keys": sorted(found.keys() - expected.keys()),
        "mismatched_keys": sorted(key for key in expected.keys() & found.keys() if expected[key] != found[key]),
    }


def check_loads_by_remote_code(copied: Path, config: PreTrainedConfig):
    """Loads what others without the package will load, in a process that cannot import it."""
    request = {
        "folder": str(copied),
        "auto_model": "AutoModel" if class_of(config) is PixCLIPModel else "AutoModelForPreTraining",
        "auto_processor": "AutoProcessor" if (copied / "tokenizer_config.json").is_file() else "AutoImageProcessor",
        "with_weights": not refers_to_backbone(config),
    }
    with tempfile.TemporaryDirectory() as modules:
        done = subprocess.run(
            [sys.executable, "-c", LOAD_BY_REMOTE_CODE, json.dumps(request)],
            env={**os.environ, "HF_MODULES_CACHE": modules},
            cwd=modules,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
    try:
        error = json.loads(done.stdout.splitlines()[-1])["error"]
    except (IndexError, KeyError, TypeError, ValueError):
        error = f"the process that loads it ended with {done.returncode}: {done.stderr[-2000:]}"
    if error is not None:
        raise NotReady(
            f"others cannot load it with trust_remote_code=True: {error}\nLoad model and processor, and save them again, so "
            "that the code beside them is that of the package; a further file that they need is uploaded with --include."
        )


def needed_code(folder: Path) -> set[str]:
    """The Python files that its configurations name, and what these import."""
    modules = set()
    for name in ("config.json", "processor_config.json", "preprocessor_config.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            content = read_json(folder / name)
            if name == "config.json":
                # Towers and backbone are made by the model's code, whatever their parts say.
                content = {key: content[key] for key in ("auto_map", "custom_pipelines") if key in content}
            # Code of another repository stays there.
            modules |= {reference.partition(".")[0] for reference in references_of(content) if "--" not in reference}
    found = set()
    for module in modules:
        try:
            imported = get_relative_import_files(folder / f"{module}.py")
        except FileNotFoundError as error:
            raise NotReady(
                f"{Path(error.filename).name} is missing, without which it loads only where PixCLIP is installed. Load "
                "model and processor, and save them again."
            ) from error
        except UnicodeDecodeError as error:
            raise NotReady(f"{module}.py, or what it imports, is no Python code: {error}") from error
        found |= {f"{module}.py", *(Path(file).relative_to(folder).as_posix() for file in imported)}
    if "modeling_pixclip.py" not in found:
        raise NotReady(
            "its config.json names no code beside it (auto_map). Load the model where PixCLIP is installed, and save it "
            "again."
        )
    return found


def references_of(value: Any) -> Iterator[str]:
    """Every `module.Class` of the auto_map and custom_pipelines in a configuration."""
    if not isinstance(value, dict):
        return
    for key, item in value.items():
        if key == "auto_map" and isinstance(item, dict):
            for group in item.values():
                group = group.values() if isinstance(group, dict) else group if isinstance(group, list) else [group]
                yield from (reference for reference in group if isinstance(reference, str))
        elif key == "custom_pipelines" and isinstance(item, dict):
            yield from (pipeline["impl"] for pipeline in item.values())
        else:
            yield from references_of(item)


def without_local_folder(path: Path) -> bytes:
    """config.json without the folder that the backbone was loaded from; its weights are in the checkpoint."""
    content = path.read_bytes()
    config = json.loads(content)
    text = config.get("text_config") or {}
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
        details = options.card_details or CardDetails()
        details = replace(details, repo_id=details.repo_id or options.repo_id)
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


@contextmanager
def hub_errors(repo_id: str):
    """Tells what the Hub answered, or that it did not, and what helps."""
    try:
        yield
    except NotReady:
        raise
    except HfHubHTTPError as error:
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
    except Exception as error:
        # A connection that is not there or breaks has other classes in each HTTP client.
        raise NotReady(
            f"{constants.ENDPOINT} cannot be reached, or broke off ({type(error).__name__}: {error}). Look at the network and "
            "HF_ENDPOINT, and run the command again."
        ) from error


def name_with_owner(repo_id: str) -> str:
    """A name without a namespace is one of the user's own."""
    if constants.HF_HUB_OFFLINE:
        raise NotReady("the Hub is switched off by HF_HUB_OFFLINE. Unset it.")
    if "/" in repo_id:
        return repo_id
    with hub_errors(repo_id):
        return f"{HfApi().whoami()['name']}/{repo_id}"


def push(upload: Upload, options: PushArguments) -> tuple[str, CommitInfo]:
    """
    Makes one commit of all files.

    Returns:
        Name of the repository, and the commit.

    Raises:
        NotReady: If the repository is not there for this user, public against their wish, or changes meanwhile.
    """
    api, branch = HfApi(), options.revision or "main"
    with hub_errors(options.repo_id):
        repo_id = api.create_repo(options.repo_id, private=options.private or None, exist_ok=True).repo_id
        if options.private and not api.repo_info(repo_id).private:
            raise NotReady(
                f"--private is given, but {repo_id} exists and is public. Change it on the Hub, or take another."
            )
        refs = api.list_repo_refs(repo_id)
        tags = {tag.name: tag.target_commit for tag in refs.tags}
        heads = {head.name: head.target_commit for head in refs.branches}
        if options.tag in tags:
            raise NotReady(
                f"{repo_id} has a tag {options.tag!r} already, of commit {tags[options.tag]}. Give another name, or leave out "
                "--tag if it names what you push."
            )
        if options.tag in heads:
            raise NotReady(f"{repo_id} has a branch {options.tag!r}. Give another name as --tag.")
        if branch not in heads:
            if branch in tags:
                raise NotReady(f"{branch!r} is not a branch of {repo_id}, but a tag. Give a branch as --revision.")
            api.create_branch(repo_id, branch=branch, exist_ok=True)
            heads[branch] = api.repo_info(repo_id, revision=branch).sha
        # Weights in other files would be loaded in place of these.
        there = api.list_repo_files(repo_id, revision=heads[branch])
        pickled = [name for name in there if name not in upload.files and PICKLED_WEIGHTS.fullmatch(name)]
        stale = [*stale_weights(there, upload.files), *pickled]
        commit = api.create_commit(
            repo_id,
            [
                *(CommitOperationAdd(name, str(f) if isinstance(f, Path) else f) for name, f in upload.files.items()),
                *(CommitOperationDelete(name) for name in stale),
            ],
            commit_message=options.commit_message,
            revision=branch,
            parent_commit=heads[branch],
        )
    for name in stale:
        print(f"deleted there, as it would be loaded in place of what was pushed: {name}")
    return repo_id, commit


if __name__ == "__main__":
    sys.exit(main())
