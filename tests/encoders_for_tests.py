# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Tiny real models of images and texts, each with the processor of its family, built without any file."""

import torch
from PIL import Image
from tiny_models import pixclip_config, randomise
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AlignConfig,
    AlignModel,
    AlignProcessor,
    AltCLIPConfig,
    AltCLIPModel,
    AltCLIPProcessor,
    BertTokenizer,
    ChineseCLIPConfig,
    ChineseCLIPModel,
    ChineseCLIPProcessor,
    CLIPConfig,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
    MetaClip2Config,
    MetaClip2Model,
    PreTrainedTokenizerFast,
    Siglip2Config,
    Siglip2Model,
    Siglip2Processor,
    Siglip2Tokenizer,
    SiglipConfig,
    SiglipModel,
    SiglipProcessor,
    XLMRobertaTokenizer,
)
from transformers.models.chinese_clip.image_processing_pil_chinese_clip import ChineseCLIPImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.efficientnet.image_processing_pil_efficientnet import EfficientNetImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

from modeling_pixclip import PixCLIPForPreTraining, PixCLIPImageProcessor, PixCLIPProcessor


WORDS = "a photo of the red blue dog cat cup on table left right with and in two people street .".split()
SIZE = 32


def word_tokenizer():
    words = ["[pad]", "[unk]", "[end]", "[stop]", *WORDS]
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[unk]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(single="$A [stop]", special_tokens=[("[stop]", 3)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[pad]", unk_token="[unk]", eos_token="[stop]", model_max_length=24
    )


def pixclip_pair(two_paths=False, resize_mode="squash", **fields):
    """A PixCLIP model that was saved for training, with its processor; `two_paths` as FG-CLIP has them."""
    text = {"backbone": "clip_text", "pooling": "eos"} if two_paths else {}
    model = PixCLIPForPreTraining(pixclip_config(text=text, **fields))
    if two_paths:
        model.text_model.add_long_text_path(positions=96, keep=8)
    processor = PixCLIPProcessor(
        PixCLIPImageProcessor(size=SIZE, resize_mode=resize_mode), word_tokenizer(), text_max_length=24
    )
    return randomise(model), processor


def _vision(**fields):
    return {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": SIZE,
        "patch_size": 8,
        **fields,
    }


def _text(tokenizer, **fields):
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        **fields,
    }


def _clip_images(kind=CLIPImageProcessorPil):
    square = {"height": SIZE, "width": SIZE}
    return kind(size={"shortest_edge": SIZE}, crop_size=square)


def _clip_tokenizer():
    vocabulary = {chr(code): code - 97 for code in range(97, 123)}
    vocabulary |= {f"{letter}</w>": 26 + place for place, letter in enumerate(vocabulary)}
    vocabulary |= {".": 52, ".</w>": 53, "<|startoftext|>": 54, "<|endoftext|>": 55}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


def _sentence_tokenizer(**options):
    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [(f"▁{word}", -1.0 - place) for place, word in enumerate(WORDS)] + [("<mask>", 0.0)]
    return XLMRobertaTokenizer(vocab=pieces, **options)


def _bert_tokenizer():
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    return BertTokenizer(vocab={word: index for index, word in enumerate(words)}, model_max_length=52)


def clip_pair():
    tokenizer = _clip_tokenizer()
    config = CLIPConfig(text_config=_text(tokenizer), vision_config=_vision(), projection_dim=16)
    return CLIPModel(config), CLIPProcessor(_clip_images(), tokenizer)


def metaclip2_pair():
    tokenizer = _sentence_tokenizer(model_max_length=77)
    text = _text(tokenizer, max_position_embeddings=77)
    config = MetaClip2Config(text_config=text, vision_config=_vision(), projection_dim=16)
    return MetaClip2Model(config), CLIPProcessor(_clip_images(), tokenizer)


def siglip_pair():
    vocabulary = {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3, "<mask>": 4}
    vocabulary |= {letter: 5 + place for place, letter in enumerate("▁abcdefghijklmnopqrstuvwxyz.")}
    tokenizer = Siglip2Tokenizer(vocab=vocabulary, merges=[], padding_side="right")
    text = _text(tokenizer, projection_size=32, max_position_embeddings=64)
    images = SiglipImageProcessorPil(size={"height": SIZE, "width": SIZE})
    return SiglipModel(SiglipConfig(text_config=text, vision_config=_vision())), SiglipProcessor(images, tokenizer)


def siglip2_pair():
    """With images of any aspect ratio, in a number of patches."""
    tokenizer = siglip_pair()[1].tokenizer
    text = _text(tokenizer, projection_size=32, max_position_embeddings=64)
    images = Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16)
    config = Siglip2Config(text_config=text, vision_config=_vision(num_patches=16))
    return Siglip2Model(config), Siglip2Processor(images, tokenizer)


def align_pair():
    tokenizer = _bert_tokenizer()
    vision = {"width_coefficient": 0.2, "depth_coefficient": 0.1, "image_size": SIZE, "hidden_dim": 32}
    config = AlignConfig(text_config=_text(tokenizer), vision_config=vision, projection_dim=64)
    square = {"height": SIZE, "width": SIZE}
    images = EfficientNetImageProcessorPil(size=square, do_center_crop=False)
    model = AlignModel(config)
    for parameter in model.vision_model.parameters():
        if parameter.ndim == 4:
            # Its own start is so small that the vectors of a fresh model are all but 0.
            torch.nn.init.normal_(parameter, std=2 * parameter[0].numel() ** -0.5)
    return model, AlignProcessor(images, tokenizer)


def chinese_clip_pair():
    tokenizer = _bert_tokenizer()
    config = ChineseCLIPConfig(text_config=_text(tokenizer), vision_config=_vision(), projection_dim=16)
    return ChineseCLIPModel(config), ChineseCLIPProcessor(_clip_images(ChineseCLIPImageProcessorPil), tokenizer)


def altclip_pair():
    tokenizer = _sentence_tokenizer(model_max_length=77)
    text = _text(tokenizer, project_dim=16, max_position_embeddings=32)
    config = AltCLIPConfig(text_config=text, vision_config=_vision(), projection_dim=16)
    return AltCLIPModel(config), AltCLIPProcessor(_clip_images(), tokenizer)


FAMILIES = {
    "clip": clip_pair,
    "metaclip2": metaclip2_pair,
    "siglip": siglip_pair,
    "siglip2": siglip2_pair,
    "align": align_pair,
    "chinese_clip": chinese_clip_pair,
    "altclip": altclip_pair,
}


def family_pair(name):
    """Model and processor of a family, the same weights each time."""
    torch.manual_seed(0)
    model, processor = FAMILIES[name]()
    return model.eval(), processor


def save_pair(pair, folder):
    model, processor = pair
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def gradient_photo(width=60, height=40, seed=0):
    """A picture of which no two places are alike."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())
