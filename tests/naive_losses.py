# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Losses in plain loops over pairs, as the papers write them; what the fast ones are compared with."""

import math


def cosine(one, other):
    return float(one @ other / one.norm() / other.norm())


def info_nce(images, texts, index, scale=math.exp(2.6592), multi_positive=True):
    """Mean over rows and over columns of -log p of the positives, which are all pairs that share a text."""
    rows = range(len(index))
    logits = [[scale * cosine(images[i], texts[index[j]]) for j in rows] for i in rows]

    def one_way(score):
        total = 0.0
        for i in rows:
            log_sum = math.log(sum(math.exp(score(i, j)) for j in rows))
            positives = [j for j in rows if index[j] == index[i]] if multi_positive else [i]
            total += sum(log_sum - score(i, j) for j in positives) / len(positives)
        return total / len(index)

    return (one_way(lambda i, j: logits[i][j]) + one_way(lambda i, j: logits[j][i])) / 2


def sigmoid(images, texts, index, scale=math.exp(2.6592), bias=-10.0):
    """Sum over all pairs of -log sigmoid(+-logit), over the number of rows; pairs that share a text are positive."""
    total = 0.0
    for i, image in enumerate(images):
        for j in range(len(index)):
            logit = scale * cosine(image, texts[index[j]]) + bias
            total += math.log1p(math.exp(-logit if index[i] == index[j] else logit))
    return total / len(index)


def hard_negative(images, texts, positives, negatives, scale=math.exp(2.6592)):
    """Mean of -log p of the positive among it and its negatives, over images with negatives (a list of texts each)."""
    losses = []
    for image, positive, others in zip(images, positives, negatives):
        if others:
            scores = [scale * cosine(image, texts[row]) for row in (positive, *others)]
            losses.append(math.log(sum(map(math.exp, scores))) - scores[0])
    return sum(losses) / len(losses)
