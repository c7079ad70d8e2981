# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""
What official checkpoints compute, written down once more: functions over state dicts in the layouts of EVA-CLIP, LLM2CLIP,
PixCLIP, OpenAI's CLIP and Long-CLIP, in plain tensor operations that share nothing with this library; and random state
dicts in those layouts. Batches are of images (B, 3, H, W), masks (B, 1, H, W) and tokens (T, L).
"""

import torch


def layer_norm(state, name, x, eps):
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
    return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]


def linear(state, name, x):
    return x @ state[f"{name}.weight"].T + state.get(f"{name}.bias", 0)


def gelu(x):
    return x * 0.5 * (1 + torch.erf(x / 2**0.5))


def quick_gelu(x):
    return x / (1 + torch.exp(-1.702 * x))


def patches_of(x, weight, bias=None):
    """Patch embeddings (B, N, D), row by row, as one product for each patch."""
    side = weight.shape[-1]
    tiles = x.unfold(2, side, side).unfold(3, side, side).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
    embedded = tiles @ weight.flatten(1).T
    return embedded if bias is None else embedded + bias


def attention(query, key, value, heads, causal=False):
    """Each (B, L, D)."""
    length, width = query.shape[1], query.shape[-1] // heads
    outputs = []
    for head in range(heads):
        own = slice(head * width, (head + 1) * width)
        scores = query[..., own] @ key[..., own].transpose(1, 2) / width**0.5
        if causal:
            scores = scores + torch.full((length, length), -torch.inf).triu(1)
        outputs.append(scores.softmax(-1) @ value[..., own])
    return torch.cat(outputs, -1)


def rotate(x, heads, grid, scale, base=10000.0):
    """Rotary positions on the patches of (B, 1 + N, D): pairs (0, 1), (2, 3) ..., rows in a head's first half, then columns."""
    width = x.shape[-1] // heads
    rotated = x.clone()
    for token in range(grid * grid):
        row, column = divmod(token, grid)
        for head in range(heads):
            for axis, place in enumerate((row, column)):
                for pair in range(width // 4):
                    angle = torch.tensor(place / grid * scale * base ** (-2 * pair / (width // 2)))
                    first = head * width + axis * (width // 2) + 2 * pair
                    one, two = x[:, 1 + token, first], x[:, 1 + token, first + 1]
                    rotated[:, 1 + token, first] = one * angle.cos() - two * angle.sin()
                    rotated[:, 1 + token, first + 1] = two * angle.cos() + one * angle.sin()
    return rotated


def eva02_vision(state, pixels, heads, mask=None, prefix="visual.", rope_scale=16, eps=1e-6):
    """
    CLS before the head, features (B, E), and the patch map (B, D, h, w) after the last norm, of the EVA02 tower.

    Biases of query and value may have their old names.
    """
    state = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    x = patches_of(pixels, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"])
    if mask is not None:
        x = x + patches_of(mask, state["alpha_patch_embed.proj.weight"], state["alpha_patch_embed.proj.bias"])
    x = torch.cat([state["cls_token"].expand(len(x), -1, -1), x], 1) + state["pos_embed"]
    grid = pixels.shape[-1] // state["patch_embed.proj.weight"].shape[-1]
    for number in range(len({name.split(".")[1] for name in state if name.startswith("blocks.")})):
        block = f"blocks.{number}"
        normed = layer_norm(state, f"{block}.norm1", x, eps)
        query, key, value = (linear(state, f"{block}.attn.{part}_proj", normed) for part in "qkv")
        query = query + state.get(f"{block}.attn.q_bias", 0)
        value = value + state.get(f"{block}.attn.v_bias", 0)
        query, key = rotate(query, heads, grid, rope_scale), rotate(key, heads, grid, rope_scale)
        attended = layer_norm(state, f"{block}.attn.inner_attn_ln", attention(query, key, value, heads), eps)
        x = x + linear(state, f"{block}.attn.proj", attended)
        normed = layer_norm(state, f"{block}.norm2", x, eps)
        gate = linear(state, f"{block}.mlp.w1", normed)
        hidden = gate / (1 + torch.exp(-gate)) * linear(state, f"{block}.mlp.w2", normed)
        x = x + linear(state, f"{block}.mlp.w3", layer_norm(state, f"{block}.mlp.ffn_ln", hidden, eps))
    x = layer_norm(state, "norm", x, eps)
    patch_map = x[:, 1:].transpose(1, 2).unflatten(2, (grid, grid))
    return x[:, 0], linear(state, "head", x[:, 0]), patch_map


def openai_blocks(state, x, heads, activation, causal=False, prefix=""):
    """The residual blocks `transformer.resblocks.N` of OpenAI's CLIP."""
    start = f"{prefix}transformer.resblocks."
    for number in range(len({name.removeprefix(start).split(".")[0] for name in state if name.startswith(start)})):
        block = f"{start}{number}"
        normed = layer_norm(state, f"{block}.ln_1", x, 1e-5)
        mixed = normed @ state[f"{block}.attn.in_proj_weight"].T + state[f"{block}.attn.in_proj_bias"]
        x = x + linear(state, f"{block}.attn.out_proj", attention(*mixed.chunk(3, -1), heads, causal))
        hidden = activation(linear(state, f"{block}.mlp.c_fc", layer_norm(state, f"{block}.ln_2", x, 1e-5)))
        x = x + linear(state, f"{block}.mlp.c_proj", hidden)
    return x


def openai_vision(state, pixels, heads, activation, prefix="visual."):
    """Features (B, E) of OpenAI's vision tower."""
    state = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    x = patches_of(pixels, state["conv1.weight"])
    x = torch.cat([state["class_embedding"].expand(len(x), 1, -1), x], 1) + state["positional_embedding"]
    x = openai_blocks(state, layer_norm(state, "ln_pre", x, 1e-5), heads, activation)
    return layer_norm(state, "ln_post", x[:, 0], 1e-5) @ state["proj"]


def transformers_vision(state, pixels, heads, activation, mask=None):
    """Features (B, E) of a vision tower with the names of Transformers' CLIP, with PixCLIP's mask convolution if it is there."""
    x = patches_of(pixels, state["vision_model.embeddings.patch_embedding.weight"])
    if mask is not None:
        x = x + patches_of(mask, state["vision_model.embeddings.alpha_patch_embedding.weight"])
    x = torch.cat([state["vision_model.embeddings.class_embedding"].expand(len(x), 1, -1), x], 1)
    x = x + state["vision_model.embeddings.position_embedding.weight"]
    # Transformers' own spelling.
    x = layer_norm(state, "vision_model.pre_layrnorm", x, 1e-5)
    start = "vision_model.encoder.layers."
    for number in range(len({name.removeprefix(start).split(".")[0] for name in state if name.startswith(start)})):
        layer = f"{start}{number}"
        normed = layer_norm(state, f"{layer}.layer_norm1", x, 1e-5)
        query, key, value = (linear(state, f"{layer}.self_attn.{part}_proj", normed) for part in "qkv")
        x = x + linear(state, f"{layer}.self_attn.out_proj", attention(query, key, value, heads))
        hidden = activation(linear(state, f"{layer}.mlp.fc1", layer_norm(state, f"{layer}.layer_norm2", x, 1e-5)))
        x = x + linear(state, f"{layer}.mlp.fc2", hidden)
    return linear(state, "visual_projection", layer_norm(state, "vision_model.post_layernorm", x[:, 0], 1e-5))


def clip_text(state, tokens, heads, activation, prefix=""):
    """Features (T, E) of CLIP's text tower; end of text is the highest id, and so the first such position."""
    x = state[f"{prefix}token_embedding.weight"][tokens] + state[f"{prefix}positional_embedding"][: tokens.shape[1]]
    x = openai_blocks(state, x, heads, activation, causal=True, prefix=prefix)
    x = layer_norm(state, f"{prefix}ln_final", x, 1e-5)
    return x[torch.arange(len(x)), tokens.argmax(-1)] @ state[f"{prefix}text_projection"]


def long_clip_text(state, tokens, heads):
    """Features of Long-CLIP's text tower: positions 0 to 19 are rows of one table, those from 20 on rows of the other."""
    table = torch.cat([state["positional_embedding"][:20], state["positional_embedding_res"][20:]])
    return clip_text({**state, "positional_embedding": table}, tokens, heads, quick_gelu)


def text_adaptor(state, vectors, prefix, normalise=True):
    """Features (T, E) of LLM2CLIP's `TextProj` on vectors of an LLM (T, W)."""
    x = vectors / vectors.square().sum(-1, keepdim=True).sqrt() if normalise else vectors
    numbers = {int(name.removeprefix(prefix).split(".")[0]) for name in state if name.startswith(prefix)}
    # The last two are a norm and a linear layer.
    for number in range(max(numbers) - 1):
        hidden = layer_norm(state, f"{prefix}{number}.ln", x, 1e-5)
        x = x + linear(state, f"{prefix}{number}.fn.3", gelu(linear(state, f"{prefix}{number}.fn.0", hidden)))
    x = layer_norm(state, f"{prefix}{max(numbers) - 1}", x, 1e-5)
    return linear(state, f"{prefix}{max(numbers)}", x)


def random_tensors(shapes, seed=0):
    """Random numbers in every tensor; norms scale by about one, so that many blocks stay finite."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        state[name] = torch.randn(shape, generator=generator) * (0.3 if len(shape) < 2 else shape[-1] ** -0.5)
        if len(shape) == 1 and name.endswith("weight"):
            state[name] += 1
    return state


def affine(name, inputs, outputs=None, bias=True):
    """Shapes of a linear layer, or of a norm without `outputs`."""
    weight = (inputs,) if outputs is None else (outputs, inputs)
    shapes = {f"{name}.weight": weight}
    return {**shapes, f"{name}.bias": weight[:1]} if bias else shapes


def eva02_shapes(
    width=32, layers=2, hidden=85, patch=8, grid=4, embed=24, mask=False, old_names=False, prefix="visual."
):
    """Of the EVA02 tower; hidden is int(width * 2.6667)."""
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1 + grid**2, width),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
    }
    if mask:
        shapes |= {"alpha_patch_embed.proj.weight": (width, 1, patch, patch), "alpha_patch_embed.proj.bias": (width,)}
    for number in range(layers):
        attn, mlp = f"blocks.{number}.attn", f"blocks.{number}.mlp"
        shapes |= affine(f"blocks.{number}.norm1", width)
        for part in "qkv":
            shapes |= affine(f"{attn}.{part}_proj", width, width, bias=part != "k" and not old_names)
        if old_names:
            shapes |= {f"{attn}.q_bias": (width,), f"{attn}.v_bias": (width,)}
        shapes |= affine(f"{attn}.inner_attn_ln", width) | affine(f"{attn}.proj", width, width)
        shapes |= affine(f"blocks.{number}.norm2", width)
        shapes |= affine(f"{mlp}.w1", width, hidden) | affine(f"{mlp}.w2", width, hidden)
        shapes |= affine(f"{mlp}.ffn_ln", hidden) | affine(f"{mlp}.w3", hidden, width)
    shapes |= affine("norm", width) | affine("head", width, embed)
    return {prefix + name: shape for name, shape in shapes.items()}


def eva02_rope_buffers(grid=4, head_width=8, layers=2, scale=16, prefix="visual."):
    """The tables that the official code saves with each block."""
    quarter = head_width // 4
    inverse = torch.tensor([10000.0 ** (-2 * pair / (head_width // 2)) for pair in range(quarter)])
    angles = torch.stack(
        [
            torch.cat([(place / grid * scale * inverse).repeat_interleave(2) for place in divmod(token, grid)])
            for token in range(grid**2)
        ]
    )
    places = [f"{prefix}rope", *(f"{prefix}blocks.{number}.attn.rope" for number in range(layers))]
    tables = {"freqs_cos": angles.cos(), "freqs_sin": angles.sin()}
    return {f"{place}.{name}": table.clone() for place in places for name, table in tables.items()}


def openai_block_shapes(width, layers, prefix):
    shapes = {}
    for number in range(layers):
        block = f"{prefix}transformer.resblocks.{number}"
        shapes |= affine(f"{block}.ln_1", width) | affine(f"{block}.ln_2", width)
        shapes |= {f"{block}.attn.in_proj_weight": (3 * width, width), f"{block}.attn.in_proj_bias": (3 * width,)}
        shapes |= affine(f"{block}.attn.out_proj", width, width)
        shapes |= affine(f"{block}.mlp.c_fc", width, 4 * width) | affine(f"{block}.mlp.c_proj", 4 * width, width)
    return shapes


def openai_vision_shapes(width=32, layers=2, patch=8, grid=4, embed=24, prefix="visual."):
    shapes = {
        f"{prefix}class_embedding": (width,),
        f"{prefix}positional_embedding": (1 + grid**2, width),
        f"{prefix}proj": (width, embed),
        f"{prefix}conv1.weight": (width, 3, patch, patch),
    }
    shapes |= affine(f"{prefix}ln_pre", width) | affine(f"{prefix}ln_post", width)
    return shapes | openai_block_shapes(width, layers, prefix)


def transformers_vision_shapes(width=32, layers=2, patch=8, grid=4, embed=24, mask=False):
    embeddings = "vision_model.embeddings"
    shapes = {
        f"{embeddings}.class_embedding": (width,),
        f"{embeddings}.patch_embedding.weight": (width, 3, patch, patch),
        f"{embeddings}.position_embedding.weight": (1 + grid**2, width),
    }
    if mask:
        shapes[f"{embeddings}.alpha_patch_embedding.weight"] = (width, 1, patch, patch)
    shapes |= affine("vision_model.pre_layrnorm", width) | affine("vision_model.post_layernorm", width)
    for number in range(layers):
        layer = f"vision_model.encoder.layers.{number}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= affine(f"{layer}.self_attn.{part}", width, width)
        shapes |= affine(f"{layer}.layer_norm1", width) | affine(f"{layer}.layer_norm2", width)
        shapes |= affine(f"{layer}.mlp.fc1", width, 4 * width) | affine(f"{layer}.mlp.fc2", 4 * width, width)
    return shapes | affine("visual_projection", width, embed, bias=False)


def clip_text_shapes(width=32, layers=2, vocabulary=60, positions=20, embed=24, prefix="text."):
    shapes = {
        f"{prefix}token_embedding.weight": (vocabulary, width),
        f"{prefix}positional_embedding": (positions, width),
        f"{prefix}text_projection": (width, embed),
    }
    return shapes | affine(f"{prefix}ln_final", width) | openai_block_shapes(width, layers, prefix)


def text_adaptor_shapes(llm=40, layers=4, embed=24, prefix="text.text_adaptor."):
    shapes = {}
    for number in range(layers):
        shapes |= affine(f"{prefix}{number}.ln", llm)
        shapes |= affine(f"{prefix}{number}.fn.0", llm, 2 * llm) | affine(f"{prefix}{number}.fn.3", 2 * llm, llm)
    return shapes | affine(f"{prefix}{layers}", llm) | affine(f"{prefix}{layers + 1}", llm, embed)
