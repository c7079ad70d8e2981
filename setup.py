# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
from pathlib import Path

from setuptools import setup


examples = ["gguf", "jinja2", "matplotlib", "tensorboard"]
evaluation = ["jinja2", "matplotlib"]
export = ["onnx", "onnxruntime", "onnxscript"]
longgrit = ["imagehash", "jinja2", "openai", "py3langid", "pydantic", "pyyaml", "tenacity"]
peft = ["peft"]
ray = ["ray[data]"]

setup(
    name="pixclip",
    version="0.1.0.dev0",
    description="Region-aware image-text embeddings: PixCLIP and FG-CLIP for Hugging Face Transformers",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The PixCLIP Authors",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    # The folder keeps its short name; installed, `processing` would collide with users' own packages.
    packages=[
        "modeling_pixclip",
        "processing_pixclip",
        "processing_pixclip.evaluation",
        "processing_pixclip.longgrit",
    ],
    package_dir={
        "modeling_pixclip": "modeling_pixclip",
        "processing_pixclip": "processing",
        "processing_pixclip.evaluation": "processing/evaluation",
        "processing_pixclip.longgrit": "processing/longgrit",
    },
    package_data={
        "modeling_pixclip": ["*.jinja"],
        "processing_pixclip.evaluation": ["*.jinja", "metrics/*/*.py", "templates/*.txt"],
        "processing_pixclip.longgrit": ["*.jinja", "prompts/*.jinja"],
    },
    install_requires=[
        "torch",
        "transformers>=5.21,<6",
        "accelerate",
        "datasets",
        "evaluate",
        "safetensors",
        "huggingface_hub",
        "sentencepiece",
        "pillow",
        "numpy",
        "pycocotools",
    ],
    extras_require={
        "evaluation": evaluation,
        "examples": examples,
        "export": export,
        "longgrit": longgrit,
        "peft": peft,
        "ray": ray,
        "dev": [
            *evaluation,
            *examples,
            *export,
            *longgrit,
            *peft,
            *ray,
            "fastapi",
            "httpx",
            "hypothesis",
            "parameterized",
            "pytest",
            "pytest-timeout",
            "pytest-xdist",
            "ruff",
            "uvicorn",
        ],
    },
)
