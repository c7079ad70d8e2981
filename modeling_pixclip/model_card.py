# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Model cards: what a configuration, a training run and its measurements say, as the README.md of a repository."""

import hashlib
import json
import numbers
import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers.configuration_utils import PreTrainedConfig

from .card_sections import (
    architecture_rows,
    evaluation_tables,
    explained,
    limits,
    model_index_results,
    objective_rows,
    run_rows,
)
from .card_text import cell, command_line, fenced, one_line, told_command


TEMPLATE = Path(__file__).with_name("model_card.md.jinja")
BEGIN, END = "<!-- pixclip-card:begin -->", "<!-- pixclip-card:end -->"
_DIGESTS = re.compile(r"^<!-- pixclip-card:metadata (.*) -->$", re.MULTILINE)
# The first words of the card that the Trainer writes on its own.
_STOCK = "<!-- This model card has been generated automatically according to the information the Trainer had access to"
_STOCK_KEYS = ("library_name", "model-index", "pipeline_tag", "tags")
# All of its other lines; what else is in it is the user's.
_STOCK_LINES = re.compile(
    r"\s*|<!-- This model card has been generated automatically .*|should probably proofread and complete it, .* -->|# .*"
    r"|This model (is a fine-tuned version of|was trained from scratch on) .* datasets?\.|More information needed"
    r"|It achieves the following results on the evaluation set:|The following hyperparameters were used during training:"
    r"|## (Model description|Intended uses & limitations|Training and evaluation data|Training procedure)"
    r"|### (Training hyperparameters|Training results|Framework versions)"
    r"|- [A-Z][\w @]*: -?(\d[\d.e+-]*|nan|inf)|- (\w+_\w+|seed|optimizer): .*"
    r"|- (Transformers|Pytorch|Datasets|Tokenizers|PEFT) \S+"
    r"|\| Training Loss .*\||\|(:?-+:?\|)+|\|( *(-?\d[\d.e+-]*|nan|inf|No log) *\|)+"
)
_REPO_PLACEHOLDER = "path/or/hub-id"


def hub_id(name: str | os.PathLike | None) -> str | None:
    """
    `name` if it can be an id on the Hub: neither a folder here nor a path.

    Args:
        name (`str`, *optional*): What was given to `from_pretrained`.

    Example:
        >>> from modeling_pixclip.model_card import hub_id
        >>> hub_id("openai/clip-vit-base-patch16"), hub_id("/data/clip"), hub_id("modeling_pixclip")
        ('openai/clip-vit-base-patch16', None, None)
    """
    name = os.fspath(name or "")
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name if name and not os.path.exists(name) else None


@dataclass
class CardDetails:
    """
    What a card says and no configuration or training state knows. What is left out is said to be not recorded.

    Args:
        license (`str`, *optional*): Of the weights, as the Hub names it, e.g. `"apache-2.0"`; it is never guessed.
        license_name (`str`, *optional*), license_link (`str`, *optional*): Of a `license="other"`.
        language (`str` or `list[str]`, *optional*): ISO 639 codes of the texts.
        datasets (`list[str]`, *optional*): Hub ids of the training data.
        base_model (`list[str]`, *optional*): Hub ids of the models it derives from. The text backbone, if it came from the
            Hub, is added.
        base_model_relation (`str`, *optional*): `"finetune"`, `"adapter"`, `"merge"` or `"quantized"`. Defaults to
            `"finetune"` for a trained model with a base model.
        tags (`list[str]`, *optional*): In addition to `pixclip` and `region-text`.
        pipeline_tag (`str`, *optional*, defaults to `"zero-shot-image-classification"`): Task that the Hub shows.
        widget (`list[dict]`, *optional*): Examples that the Hub shows: `src` (public http(s) URL of an image),
            `candidate_labels` (list, or names separated by commas), `example_title`.
        model_name (`str`, *optional*): Title; defaults to the name of the repository or folder.
        repo_id (`str`, *optional*): Hub id that the examples of use name.
        vision_origin (`str`, *optional*): `"scratch"` for a tower from random weights, or the Hub id or folder that it came
            from; of a folder only its name is told.
        preset (`str`, *optional*): Name of the objective; by default it is recognised.
        data (`dict`, *optional*): By split (`"train"`, others), any of `name`, `images` and `regions`.
        results (`dict` or path, *optional*): Measured values, `{split: {row: {metric: value}}}`, or a JSON file of them
            such as `region_retrieval.json`, which is read whenever a card is rendered.
        command (`str` or `list[str]`, *optional*): What trained and measured it, a line of a shell or its words as in
            `sys.argv`. Values of options that hold secrets are masked, and of paths of this machine the last part is left.
        notes (`list[str]`, *optional*): Further limits, one sentence each.

    Raises:
        ValueError, TypeError: If a field, now or when it is set later, has what it cannot be; when the card is rendered,
            if the file of the results cannot be read as that.

    Example:
        >>> from modeling_pixclip import CardDetails
        >>> CardDetails(license="apache-2.0", data={"train": {"images": 65, "regions": 361}}).license
        'apache-2.0'
        >>> CardDetails(datasets=["/data/mine"])
        Traceback (most recent call last):
        ...
        ValueError: datasets has '/data/mine'; accepted are ids on the Hub. Name what is elsewhere in data.
    """

    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    language: str | list[str] | None = None
    datasets: list[str] = field(default_factory=list)
    base_model: list[str] = field(default_factory=list)
    base_model_relation: str | None = None
    tags: list[str] = field(default_factory=list)
    pipeline_tag: str = "zero-shot-image-classification"
    widget: list[dict[str, Any]] = field(default_factory=list)
    model_name: str | None = None
    repo_id: str | None = None
    vision_origin: str | None = None
    preset: str | None = None
    data: dict[str, dict[str, Any]] = field(default_factory=dict)
    results: dict[str, dict[str, dict[str, float | None]]] | str | os.PathLike | None = None
    command: str | None = None
    notes: list[str] = field(default_factory=list)

    def __setattr__(self, name: str, value: Any):
        # Also what is set later, so that the error comes where it is made and not at the end of a run.
        super().__setattr__(name, _CHECKS[name](name, value) if name in _CHECKS else value)

    def __post_init__(self):
        if self.license == "other" and not self.license_name:
            raise ValueError(
                "license is 'other'; name it: license_name, and license_link if it can be read somewhere."
            )

    def measured(self) -> dict[str, dict[str, dict[str, float | None]]]:
        """The results, read from their file if they are in one, without splits and rows that have no metric."""
        results = self.results or {}
        if isinstance(results, str):
            where = os.path.basename(results)
            try:
                results = json.loads(Path(results).read_text(encoding="utf-8"))
            except ValueError as error:
                raise ValueError(f"results: {where} cannot be read as JSON: {error}") from error
            results = _checked_results(where, results)
        rows = {split: {row: metrics for row, metrics in rows.items() if metrics} for split, rows in results.items()}
        return {split: rows for split, rows in rows.items() if rows}


def _text(name: str, value: Any) -> str | None:
    if value is not None and not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"{name} is {value!r}; accepted is a text.")
    return None if value is None else os.fspath(value)


def _texts(name: str, value: Any) -> list[str]:
    values = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(values, (list, tuple)) or not all(isinstance(each, str) for each in values):
        raise TypeError(f"{name} is {value!r}; accepted is a list of texts.")
    return list(values)


def _hub_ids(name: str, value: Any) -> list[str]:
    remedies = {
        "datasets": "Name what is elsewhere in data.",
        "base_model": "Leave out what is elsewhere, or name it as vision_origin.",
    }
    values = _texts(name, value)
    for each in values:
        if hub_id(each) is None:
            what = ", a folder or file here" if os.path.exists(each) else ""
            raise ValueError(f"{name} has {each!r}{what}; accepted are ids on the Hub. {remedies[name]}")
    return values


def _matching(pattern: str, accepted: str) -> Callable[[str, Any], str | None]:
    def check(name: str, value: Any) -> str | None:
        text = _text(name, value)
        if text is not None and not re.fullmatch(pattern, text):
            raise ValueError(f"{name} is {text!r}; accepted are {accepted}.")
        return text

    return check


def _repo_id(name: str, value: Any) -> str | None:
    text = _text(name, value)
    try:
        return text if text is None else validate_repo_id(text) or text
    except HFValidationError as error:
        raise ValueError(f"{name} is {text!r}; accepted is an id on the Hub: {error}") from error


def _languages(name: str, value: Any) -> str | list[str] | None:
    values = _texts(name, value)
    for each in values:
        if not re.fullmatch(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*|code|multilingual", each):
            raise ValueError(f"{name} has {each!r}; accepted are ISO 639 codes such as 'en', and 'multilingual'.")
    return value if isinstance(value, str) else values or None


def _checked_widget(name: str, value: Any) -> list[dict[str, str]]:
    examples = [value] if isinstance(value, dict) else value or []
    if not isinstance(examples, (list, tuple)) or not all(isinstance(example, dict) for example in examples):
        raise TypeError(
            f"{name} is {value!r}; accepted is a list of objects of src, candidate_labels and example_title."
        )
    return [_checked_example(f"{name} {place}", example) for place, example in enumerate(examples)]


def _checked_example(where: str, example: dict[str, Any]) -> dict[str, str]:
    unknown = sorted(map(str, example.keys() - {"src", "candidate_labels", "example_title"}))
    if unknown or "src" not in example:
        raise ValueError(
            f"{where} has {sorted(map(str, example))}; accepted are src, which it needs, candidate_labels and "
            "example_title."
        )
    src = str(example["src"])
    if not re.fullmatch(r"https?://[\w-]+(\.[\w-]+)+(:\d+)?/\S*", src):
        raise ValueError(f"{where} has src {src!r}; accepted is the public http(s) URL of an image.")
    found = {"src": src}
    labels = example.get("candidate_labels")
    if labels is not None and not isinstance(labels, str):
        labels = _texts(f"candidate_labels of {where}", labels)
        with_comma = [label for label in labels if "," in label]
        if with_comma:
            raise ValueError(
                f"{where} has the label {with_comma[0]!r}; the Hub separates labels by commas. Word it without."
            )
        labels = ", ".join(labels)
    for key, text in (("candidate_labels", labels), ("example_title", example.get("example_title"))):
        if text is not None:
            found[key] = one_line(text)
    return found


def _checked_data(name: str, value: Any) -> dict[str, dict[str, Any]]:
    checked = {}
    for split, entry in _items(name, value, "an object of splits"):
        found = dict(_items(f"{name} of {split!r}", entry, "an object of name, images and regions"))
        unknown = sorted(map(str, found.keys() - {"name", "images", "regions"}))
        if unknown:
            raise ValueError(f"{name} of {split!r} has {', '.join(unknown)}; accepted are name, images and regions.")
        if "name" in found:
            found["name"] = _text(f"name in {name} of {split!r}", found["name"])
        for key in ("images", "regions"):
            count = found.get(key)
            if count is not None and (not isinstance(count, numbers.Integral) or isinstance(count, bool) or count < 0):
                raise ValueError(f"{key} in {name} of {split!r} is {count!r}; accepted are whole numbers.")
            if count is not None:
                found[key] = int(count)
        checked[split] = found
    return checked


def _results(name: str, value: Any) -> dict[str, dict[str, dict[str, float | None]]] | str | None:
    if value is None or isinstance(value, (str, os.PathLike)):
        return _text(name, value)
    return _checked_results(name, value)


def _checked_results(name: str, value: Any) -> dict[str, dict[str, dict[str, float | None]]]:
    form = "{split: {row: {metric: value}}}"
    checked: dict[str, dict[str, dict[str, float | None]]] = {}
    for split, rows in _items(name, value, form):
        checked[split] = {}
        for row, metrics in _items(f"{name} of {split!r}", rows, form):
            where = f"{name} of {split!r}, {row!r},"
            checked[split][row] = {key: _metric(where, key, each) for key, each in _items(where, metrics, form)}
    return checked


def _metric(where: str, key: str, value: Any) -> float | None:
    # None is what cannot be measured, as JSON has no NaN.
    if value is not None and (not isinstance(value, numbers.Real) or isinstance(value, bool)):
        raise TypeError(f"{where} has {value!r} as {key!r}; accepted is a number, and None for what was not measured.")
    return value if value is None else int(value) if isinstance(value, numbers.Integral) else float(value)


def _items(name: str, value: Any, form: str) -> list[tuple[str, Any]]:
    value = {} if value is None else value
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise TypeError(f"{name} is {value!r}; accepted is {form}.")
    return list(value.items())


def _command(name: str, value: Any) -> str | None:
    if isinstance(value, (list, tuple)):
        return command_line(_texts(name, value))
    return _text(name, value)


# The Hub's tasks that embeddings of images, regions and texts are of use for.
PIPELINE_TAGS = (
    *("zero-shot-image-classification", "image-feature-extraction", "feature-extraction"),
    *("zero-shot-object-detection", "image-segmentation", "image-classification", "visual-document-retrieval"),
)
RELATIONS = ("finetune", "adapter", "merge", "quantized")
_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "license": _matching(
        r"[a-z0-9][a-z0-9.+-]*",
        "the Hub's names, such as 'apache-2.0' or 'cc-by-4.0', and 'other' with license_name and license_link",
    ),
    "license_name": _text,
    "license_link": _text,
    "language": _languages,
    "datasets": _hub_ids,
    "base_model": _hub_ids,
    "base_model_relation": _matching("|".join(RELATIONS), ", ".join(map(repr, RELATIONS))),
    "tags": _texts,
    "pipeline_tag": _matching("|".join(PIPELINE_TAGS), ", ".join(map(repr, PIPELINE_TAGS))),
    "widget": _checked_widget,
    "model_name": _text,
    "repo_id": _repo_id,
    "vision_origin": _text,
    "preset": _text,
    "data": _checked_data,
    "results": _results,
    "command": _command,
    "notes": _texts,
}


def _metadata(config: PreTrainedConfig, details: CardDetails, training: dict[str, Any] | None) -> dict[str, Any]:
    bases = list(details.base_model)
    source = getattr(config.text_config, "backbone_source", None) or {}
    # A name that was given to from_pretrained may be that of a folder; what came from the Hub has a commit.
    loaded = config.name_or_path if getattr(config, "_commit_hash", None) else None
    for name in (hub_id(loaded), hub_id(details.vision_origin), source.get("repo_id")):
        if name is not None and name != "scratch" and name not in bases and name != details.repo_id:
            bases.append(name)
    relation = details.base_model_relation or ("finetune" if training and bases else None)
    metadata = {
        "license": details.license,
        "license_name": details.license_name and one_line(details.license_name),
        "license_link": details.license_link and one_line(details.license_link),
        "language": details.language,
        "library_name": "transformers",
        "pipeline_tag": details.pipeline_tag,
        "base_model": bases or None,
        "base_model_relation": relation if bases else None,
        "datasets": details.datasets or None,
        "tags": list(dict.fromkeys(["pixclip", "region-text", *map(one_line, details.tags)])),
        "widget": details.widget or None,
    }
    return {name: value for name, value in metadata.items() if value is not None}


def _digests(metadata: dict[str, Any]) -> dict[str, str]:
    """By key, a digest of its value as it is read back from a file."""
    texts = {key: json.dumps(value, sort_keys=True, default=str) for key, value in metadata.items()}
    return {key: hashlib.sha256(text.encode()).hexdigest()[:12] for key, text in texts.items()}


def render_model_card(
    config: PreTrainedConfig,
    processor: Any = None,
    details: CardDetails | None = None,
    training: dict[str, Any] | None = None,
) -> ModelCard:
    """
    The card of a model: metadata and text of what is known, and of what is not.

    Text of others (labels, paths, names) is escaped; of a path on this machine only the last part is told.

    Args:
        config ([`PixCLIPConfig`]): Of the model.
        processor ([`PixCLIPProcessor`], *optional*): For template, length and preparation of images.
        details ([`CardDetails`], *optional*): What those who trained it say.
        training (`dict`, *optional*): What [`ModelCardCallback`] wrote down of a training run.

    Returns:
        [`~huggingface_hub.ModelCard`]: See [`write_model_card`].

    Raises:
        ImportError: If jinja2 is not installed.

    Example:
        >>> from modeling_pixclip import CardDetails, PixCLIPConfig, render_model_card
        >>> card = render_model_card(PixCLIPConfig(), details=CardDetails(license="apache-2.0", model_name="mine"))
        >>> card.data.pipeline_tag, card.data.license
        ('zero-shot-image-classification', 'apache-2.0')
        >>> "Training was not recorded" in card.text
        True
    """
    details = details or CardDetails()
    results, name = details.measured(), one_line(details.model_name or (details.repo_id or "PixCLIP").split("/")[-1])
    metadata = _metadata(config, details, training)
    entries = model_index_results(results, details.data, details.datasets, training)
    data = ModelCardData(**metadata, model_name=name if entries else None, eval_results=entries or None)
    try:
        return ModelCard.from_template(
            data,
            template_path=str(TEMPLATE),
            begin=BEGIN,
            end=END,
            digests=json.dumps(_digests(ModelCard(f"---\n{data.to_yaml()}\n---\n").data.to_dict())),
            cell=cell,
            title=cell(name),
            repository=json.dumps(details.repo_id or _REPO_PLACEHOLDER),
            architecture=architecture_rows(config, processor, details.vision_origin),
            objective=objective_rows(config, training, details.preset) if training else None,
            run=run_rows(training, details.data) if training else None,
            tables=evaluation_tables(results, details.data, training),
            explained=explained(results),
            command=fenced(told_command(details.command), "bash") if details.command else None,
            limits=limits(config, details, results, training),
            license_text=cell(details.license_name or details.license) if details.license else None,
        )
    except ImportError as error:
        raise ImportError("model cards are rendered by jinja2, which is not installed: pip install jinja2.") from error


def merge_model_cards(existing: str, card: ModelCard) -> ModelCard:
    """
    A new card put into the file of an earlier one, of which it keeps what was written by hand.

    The text between the two marks is replaced, what stands before and after them stays. A key of the metadata that was
    changed, added or deleted by hand since it was generated stays so. Of a text without marks all is kept, and the card
    follows it; the card that the Trainer writes on its own is replaced, unless something was added to it.

    Args:
        existing (`str`): Content of the file.
        card ([`~huggingface_hub.ModelCard`]): Of [`render_model_card`].

    Raises:
        ValueError: If the metadata cannot be read, or there is one mark without the other.

    Example:
        >>> from modeling_pixclip import PixCLIPConfig, render_model_card
        >>> from modeling_pixclip.model_card import merge_model_cards
        >>> card = render_model_card(PixCLIPConfig())
        >>> merged = merge_model_cards("---\\nlicense: mit\\n---\\nMy own words.", card)
        >>> merged.data.license, merged.text.startswith("My own words.")
        ('mit', True)
    """
    existing = existing.replace("\r\n", "\n")
    try:
        before = ModelCard(existing)
    except Exception as error:
        raise ValueError(f"its metadata cannot be read: {error}") from error
    body, new = before.text, card.text
    marks = [body.count(f"{mark}\n") + body.endswith(mark) for mark in (BEGIN, END)]
    ours = marks == [1, 1] and body.index(BEGIN) < body.index(END)
    if not ours and marks != [0, 0]:
        raise ValueError(
            f"it has {marks[0]} times {BEGIN!r} and {marks[1]} times {END!r}; put one of each back, in this order, or "
            "delete both."
        )
    own, generated = before.data.to_dict(), card.data.to_dict()
    generated_text = new[new.index(BEGIN) : new.index(END) + len(END)]
    then: dict[str, str] = {}
    if ours:
        digests = _DIGESTS.search(body)
        try:
            then = dict(json.loads(digests.group(1))) if digests else {}
        except ValueError:
            # Changed by hand: every key counts as the user's.
            then = {}
        text = body[: body.index(BEGIN)] + generated_text + body[body.index(END) + len(END) :]
    elif _STOCK in body and all(map(_STOCK_LINES.fullmatch, body.splitlines())):
        text = new
        own = {key: value for key, value in own.items() if key not in _STOCK_KEYS}
    else:
        text = f"{body.rstrip()}\n\n{generated_text}\n" if body.strip() else new
    now = _digests(own)
    # Changed or added by hand, or as it was generated; then what the new card says, but for what was deleted by hand.
    by_hand = {key: value for key, value in own.items() if then.get(key) != now[key]}
    deleted = then.keys() - own.keys()
    metadata = {key: value for key, value in generated.items() if key not in deleted} | by_hand
    return ModelCard(f"---\n{ModelCardData(**metadata).to_yaml()}\n---\n{text}")


def write_model_card(folder: str | os.PathLike, card: ModelCard) -> Path:
    """
    Writes a card as README.md, as a whole or not at all, keeping what was written by hand: see `merge_model_cards`.

    Args:
        folder (`str` or `os.PathLike`): Of the saved model.
        card ([`~huggingface_hub.ModelCard`]): Of [`render_model_card`].

    Returns:
        `Path`: The file.

    Raises:
        ValueError: If there is a README.md whose metadata or marks are damaged; it is left as it is.

    Example:
        >>> import tempfile
        >>> from modeling_pixclip import PixCLIPConfig, render_model_card, write_model_card
        >>> write_model_card(tempfile.mkdtemp(), render_model_card(PixCLIPConfig())).name
        'README.md'
    """
    # Where it is a link, what it leads to is written.
    path = Path(os.path.realpath(Path(folder) / "README.md"))
    if path.exists():
        try:
            card = merge_model_cards(path.read_text(encoding="utf-8-sig"), card)
        except ValueError as error:
            raise ValueError(f"{path} is kept as it is, without the new card: {error}") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    # The Trainer uploads the folder while it trains, but nothing that begins with an underscore.
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix="_README.", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as file:
            file.write(f"{card.content.rstrip()}\n")
            file.flush()
            os.fsync(file.fileno())
        # mkstemp's file is its owner's alone.
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return Path(folder) / "README.md"


__all__ = ["CardDetails", "hub_id", "merge_model_cards", "render_model_card", "write_model_card"]
