# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Model cards: what a configuration, a training run and its measurements say, as the README.md of a repository."""

import hashlib
import json
import os
import re
import tempfile
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
from .card_text import cell, fenced, one_line, without_local_paths


TEMPLATE = Path(__file__).with_name("model_card.md.jinja")
BEGIN, END = "<!-- pixclip-card:begin -->", "<!-- pixclip-card:end -->"
_DIGESTS = re.compile(r"^<!-- pixclip-card:metadata (.*) -->$", re.MULTILINE)
# The first words of the card that the Trainer writes on its own.
_STOCK = "<!-- This model card has been generated automatically according to the information the Trainer had access to"
_STOCK_KEYS = ("library_name", "model-index", "pipeline_tag", "tags")
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
            such as `region_retrieval.json`.
        command (`str`, *optional*): What trained and measured it; absolute paths are cut to their last part.
        notes (`list[str]`, *optional*): Further limits, one sentence each.

    Raises:
        ValueError: If a Hub id is none, a licence is not in the Hub's form, or a widget's image is not at a public URL;
            when the card is rendered, if the results have another form.

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

    def __post_init__(self):
        for name in ("datasets", "base_model", "tags"):
            value = getattr(self, name)
            setattr(self, name, [value] if isinstance(value, str) else list(value or ()))
        remedies = {
            "datasets": "Name what is elsewhere in data.",
            "base_model": "Leave out what is elsewhere, or name it as vision_origin.",
        }
        for name, remedy in remedies.items():
            for value in getattr(self, name):
                if hub_id(value) is None:
                    raise ValueError(f"{name} has {value!r}; accepted are ids on the Hub. {remedy}")
        if self.license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", self.license):
            raise ValueError(
                f"license is {self.license!r}; accepted are the Hub's names, such as 'apache-2.0' or 'cc-by-4.0', and "
                "'other' with license_name and license_link."
            )
        if self.repo_id is not None:
            validate_repo_id(self.repo_id)
        if self.license == "other" and not self.license_name:
            raise ValueError(
                "license is 'other'; name it: license_name, and license_link if it can be read somewhere."
            )
        self.widget = [_checked_widget(place, example) for place, example in enumerate(self.widget or ())]

    def measured(self) -> dict[str, dict[str, dict[str, float | None]]]:
        """The results, read from their file if they are in one."""
        results, where = self.results or {}, "results"
        if isinstance(results, (str, os.PathLike)):
            where = os.path.basename(results)
            results = json.loads(Path(results).read_text(encoding="utf-8"))
        tables = [results, *_values(results), *(row for rows in _values(results) for row in _values(rows))]
        if not all(isinstance(table, dict) for table in tables):
            raise ValueError(
                f"{where} is not of the form {{split: {{row: {{metric: value}}}}}}, as region_retrieval.json is."
            )
        return results


def _values(table: Any) -> list:
    return list(table.values()) if isinstance(table, dict) else []


def _checked_widget(place: int, example: dict[str, Any]) -> dict[str, str]:
    unknown = sorted(example.keys() - {"src", "candidate_labels", "example_title"})
    if unknown or "src" not in example:
        raise ValueError(
            f"widget {place} has {sorted(example)}; accepted are src, which it needs, candidate_labels and example_title."
        )
    src = str(example["src"])
    if not re.fullmatch(r"https?://[\w-]+(\.[\w-]+)+(:\d+)?/\S*", src):
        raise ValueError(f"widget {place} has src {src!r}; accepted is the public http(s) URL of an image.")
    found = {"src": src}
    labels = example.get("candidate_labels")
    if labels is not None and not isinstance(labels, str):
        with_comma = [label for label in labels if "," in label]
        if with_comma:
            raise ValueError(
                f"widget {place} has the label {with_comma[0]!r}; the Hub separates labels by commas. Word it without."
            )
        labels = ", ".join(labels)
    for name, value in (("candidate_labels", labels), ("example_title", example.get("example_title"))):
        if value is not None:
            found[name] = one_line(value)
    return found


def _metadata(config: PreTrainedConfig, details: CardDetails, training: dict[str, Any] | None) -> dict[str, Any]:
    bases = list(details.base_model)
    source = getattr(config.text_config, "backbone_source", None) or {}
    for name in (hub_id(config.name_or_path), hub_id(details.vision_origin), source.get("repo_id")):
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
            command=fenced(without_local_paths(details.command), "bash") if details.command else None,
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
    follows it; the card that the Trainer writes on its own is replaced.

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
    elif _STOCK in body:
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
    path = Path(folder) / "README.md"
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
    return path


__all__ = ["CardDetails", "hub_id", "merge_model_cards", "render_model_card", "write_model_card"]
