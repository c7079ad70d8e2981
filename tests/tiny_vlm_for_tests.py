# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""A vision-language model of LLaVA's layout, small enough to be made, and taught a few answers by heart, in a test."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)


SIDE, PATCH = 28, 14
ENOUGH = 0.01
CONTROL = ["<|im_start|>", "<|im_end|>", "<|pad|>", "<image>"]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] in ['image', 'image_url'] %}<image>\n{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tokenizer(texts, size=600):
    """Byte-level BPE, so that it can spell everything; `texts` in few tokens."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=CONTROL, initial_alphabet=alphabet)
    backend.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<|pad|>", eos_token="<|im_end|>", additional_special_tokens=["<image>"]
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def language_config(tokenizer):
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def make_tiny_llm(folder, texts=("a red kettle",)):
    """Saves a language model with random weights."""
    tokenizer = make_tokenizer(texts)
    LlamaForCausalLM(language_config(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_tiny_vlm(folder, texts=("a red kettle",), lessons=(), steps=500, size=600):
    """Saves a vision-language model.

    Args:
        folder: Where.
        texts: What its tokens are made for.
        lessons: Conversations (messages with pictures in them, answer) that it learns by heart; none for random weights.
        steps: Most steps of learning, of all lessons each.
        size: Most tokens of the vocabulary.

    Returns:
        Loss of the worst lesson in the last step, in nats a token of its answer; less than `ENOUGH` if it was learnt.
    """
    tokenizer = make_tokenizer(texts, size)
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=PATCH,
        projection_dim=32,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=language_config(tokenizer),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_select_strategy="default",
        vision_feature_layer=-1,
    )
    model = LlavaForConditionalGeneration(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
    loss = learn(model, processor, lessons, steps) if lessons else None
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return loss


def learn(model, processor, lessons, steps):
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    batches = []
    for messages, answer in lessons:
        start = processor.apply_chat_template(messages, add_generation_prompt=True, **options)
        whole = processor.apply_chat_template([*messages, {"role": "assistant", "content": answer}], **options)
        labels = whole["input_ids"].clone()
        labels[:, : start["input_ids"].shape[1]] = -100
        batches.append({**whole, "labels": labels})
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    model.train()
    for _ in range(steps):
        losses = []
        for batch in batches:
            loss = model(**batch).loss
            loss.backward()
            losses.append(loss.item())
        if max(losses) < ENOUGH:
            break
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return max(losses)
