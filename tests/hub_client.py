# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""
A client of a Hub with the package installed: answers calls, a line of JSON each, in a process of its own.

The address of the Hub is read when huggingface_hub is imported, so that the process of the tests cannot be such a client.
"""

import hashlib
import importlib.util
import io
import json
import os
import sys
import traceback
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import torch
from datasets import Dataset, load_dataset
from huggingface_hub import CommitOperationAdd, HfApi, ModelCard
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForPreTraining,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
    pipeline,
)

import modeling_pixclip  # noqa: F401
from processing_pixclip import RegionJsonlDataset, RegionStream, StreamedRecords


EXAMPLES = Path(__file__).parents[1] / "examples"
AUTO = {
    auto.__name__: auto
    for auto in (
        AutoImageProcessor,
        AutoModel,
        AutoModelForPreTraining,
        AutoModelForZeroShotImageClassification,
        AutoProcessor,
    )
}
api = HfApi()


def fingerprint(item) -> str:
    """Of all bits of tensors by name, or of what the configuration of a processor says."""
    digest = hashlib.sha256()
    if isinstance(item, dict):
        for name, tensor in sorted(item.items()):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    else:
        digest.update(item.to_json_string().encode())
    return digest.hexdigest()


def state_of(item):
    return fingerprint(item.state_dict() if isinstance(item, torch.nn.Module) else item)


def fingerprint_of_folder(folder, auto="AutoModel"):
    return state_of(AUTO[auto].from_pretrained(folder))


def push(auto, folder, repository, **options):
    commit = AUTO[auto].from_pretrained(folder).push_to_hub(repository, **options)
    return commit.oid


def push_pipeline(folder, repository, task, **options):
    return pipeline(task, model=folder, device="cpu").push_to_hub(repository, **options).oid


def load(auto, repository, **options):
    """Class, where it comes from, and the fingerprint of what a repository holds."""
    item = AUTO[auto].from_pretrained(repository, **options)
    return {"class": type(item).__name__, "module": type(item).__module__, "state": state_of(item)}


def classify(repository, image, labels, task="zero-shot-image-classification", **options):
    answer = pipeline(task, model=repository, device="cpu", **options)
    return {"module": type(answer.model).__module__, "scores": answer(image, candidate_labels=labels)}


def hub(method, **arguments):
    """A method of `HfApi`."""
    answer = getattr(api, method)(**arguments)
    return getattr(answer, "oid", None) or getattr(answer, "name", None)


def commit(repository, files, **options):
    operations = [CommitOperationAdd(path, content.encode()) for path, content in files.items()]
    return api.create_commit(repository, operations, commit_message="files", **options).oid


def card(repository, text=None, **options):
    """Pushes a card, or tells the metadata of the one that is there."""
    if text is not None:
        ModelCard(text).push_to_hub(repository, **options)
    return ModelCard.load(repository).data.to_dict()


def push_rows(files, repository, **options):
    """Pushes a data set with `datasets`, as somebody would who has loaded our shards with it."""
    Dataset.from_parquet(files).push_to_hub(repository, **options)


def push_longgrit(folder, repository, **options):
    """Pushes the output folder of a LongGRIT run."""
    from processing_pixclip.longgrit.push import push_dataset

    return push_dataset(folder, repository, **options)


def read_dataset(dataset):
    """Samples of what `run_pretraining.py --dataset` would read."""
    sys.path.insert(0, str(EXAMPLES))
    from pretraining_data import shards_of_dataset

    return read_stream(shards_of_dataset(dataset))


def answer_of_endpoint(repository, revision, request):
    """What the handler of a repository answers, as Inference Endpoints call it."""
    folder = api.snapshot_download(repository, revision=revision)
    spec = importlib.util.spec_from_file_location("endpoint_handler", f"{folder}/handler.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.EndpointHandler(folder)(request)


def told_samples(samples):
    told = []
    for sample in samples:
        pixels = hashlib.sha256(sample["image"].convert("RGB").tobytes()).hexdigest()
        told.append([sample["image_id"], pixels, sample["texts"], len(sample["masks"])])
    return sorted(told)


def read_jsonl(path):
    dataset = RegionJsonlDataset(path)
    return told_samples(dataset[index] for index in range(len(dataset)))


def read_stream(paths):
    return told_samples(RegionStream(paths))


def read_rows(repository, **options):
    return told_samples(StreamedRecords(load_dataset(repository, split="train", streaming=True, **options)))


def run_example(name, arguments, token, without=()):
    """
    `main` of a script of the examples: exit status, standard output, error output.

    Args:
        without: Functions of the script, without an answer, to leave out: another test has them.
    """
    os.environ["HF_TOKEN"] = token
    if str(EXAMPLES) not in sys.path:
        sys.path.insert(0, str(EXAMPLES))
    example = importlib.import_module(name)
    kept = {function: getattr(example, function) for function in without}
    for function in without:
        setattr(example, function, lambda *arguments: None)
    output, errors = io.StringIO(), io.StringIO()
    try:
        with redirect_stdout(output), redirect_stderr(errors):
            status = example.main(arguments)
    finally:
        vars(example).update(kept)
    return [status, output.getvalue(), errors.getvalue()]


def main():
    answers = sys.stdout
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        name, arguments = json.loads(line)
        try:
            with redirect_stdout(sys.stderr):
                answer = {"answer": globals()[name](**arguments)}
        except Exception as error:
            traceback.print_exc()
            answer = {"error": type(error).__name__, "message": str(error)}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
