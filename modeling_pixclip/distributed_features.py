# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""
Sums and gathers over the processes of a run, with gradient, for any number of rows in each.

A loss here has the value of the joined batch in every process, and a gradient whose mean over processes, which is what
DDP and FSDP take, is the gradient of the joined batch. So a backward pass multiplies by the number of processes. It
counts on what holds for a loss that all processes share: the factors it is multiplied with are equal in all of them.
Each function is a collective: every process calls it, also one without rows. In one process they cost nothing.
"""

import torch
import torch.distributed as dist


def is_distributed() -> bool:
    """
    Whether `torch.distributed` runs, be it with one process, whose model DDP or FSDP wrap as they do that of several.

    Returns:
        `bool`.

    Example:
        >>> from modeling_pixclip.distributed_features import is_distributed
        >>> is_distributed()
        False
    """
    return dist.is_available() and dist.is_initialized()


def world_size() -> int:
    """
    Number of processes of the run, 1 without `torch.distributed`.

    Returns:
        `int`.

    Example:
        >>> from modeling_pixclip.distributed_features import world_size
        >>> world_size()
        1
    """
    return dist.get_world_size() if is_distributed() else 1


def process_rank() -> int:
    """
    Number of this process, from 0; 0 without `torch.distributed`.

    Returns:
        `int`.

    Example:
        >>> from modeling_pixclip.distributed_features import process_rank
        >>> process_rank()
        0
    """
    return dist.get_rank() if is_distributed() else 0


def barrier() -> None:
    """
    Waits until all processes are here.

    Example:
        >>> from modeling_pixclip.distributed_features import barrier
        >>> barrier()
    """
    if world_size() > 1:
        dist.barrier()


def global_count(counts: list[int], device: torch.device | str | None = None) -> torch.Tensor:
    """
    Sums of counts over all processes.

    Args:
        counts (`list[int]`): Counts of this process; as many in each.
        device (`torch.device`, *optional*): Where the backend works; the CPU by default.

    Returns:
        `torch.Tensor` of shape `(len(counts),)`, int64.

    Example:
        >>> from modeling_pixclip.distributed_features import global_count
        >>> global_count([3, 0])
        tensor([3, 0])
    """
    totals = torch.tensor(counts, dtype=torch.int64, device=device)
    if world_size() > 1 and len(totals):
        dist.all_reduce(totals)
    return totals


def row_counts(rows: int, device: torch.device | str | None = None) -> list[int]:
    """
    Number of rows of each process.

    Args:
        rows (`int`): Number of rows of this process.
        device (`torch.device`, *optional*): Where the backend works; the CPU by default.

    Returns:
        `list[int]`, one a process.

    Example:
        >>> from modeling_pixclip.distributed_features import row_counts
        >>> row_counts(5)
        [5]
    """
    if world_size() == 1:
        return [rows]
    counts = torch.zeros(world_size(), dtype=torch.int64, device=device)
    dist.all_gather_into_tensor(counts, torch.tensor([rows], dtype=torch.int64, device=device))
    return counts.tolist()


def join_rows(values: torch.Tensor, counts: list[int]) -> torch.Tensor:
    """Rows of all processes in the order of their ranks, without gradient. `counts` is that of [`row_counts`]."""
    if len(counts) == 1 or not any(counts):
        return values.detach()
    # Backends gather equal shapes only; the padding is cut off here, and no loss ever sees it.
    most = max(counts)
    padded = values.new_zeros(most, *values.shape[1:])
    padded[: len(values)] = values.detach()
    parts = values.new_empty(len(counts) * most, *values.shape[1:])
    dist.all_gather_into_tensor(parts, padded)
    if min(counts) == most:
        return parts
    return torch.cat([part[:count] for part, count in zip(parts.split(most), counts)])


def sum_own_rows(values: torch.Tensor, counts: list[int]) -> torch.Tensor:
    """Of rows `(sum(counts), ...)` that each process has values for, the sums of those that belong to this one."""
    if len(counts) == 1 or not any(counts):
        return values
    # An exchange takes uneven parts on every backend, where reduce_scatter does not.
    own = counts[process_rank()]
    parts = values.new_empty(len(counts) * own, *values.shape[1:])
    dist.all_to_all_single(parts, values.contiguous(), [own] * len(counts), counts)
    return parts.view(len(counts), own, *values.shape[1:]).sum(0)


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values: torch.Tensor, counts: list[int]) -> torch.Tensor:
        ctx.counts = counts
        return join_rows(values, counts).clone()

    @staticmethod
    def backward(ctx, gradient: torch.Tensor):
        return sum_own_rows(gradient, ctx.counts), None


# torch.compile leaves collectives and their gradients as they are.
_gather_rows = torch.compiler.disable(_GatherRows.apply)


def gather_rows(values: torch.Tensor, counts: list[int]) -> torch.Tensor:
    """
    Rows of all processes in the order of their ranks. The gradient of a row is the sum over all processes.

    Args:
        values (`torch.Tensor` of shape `(R, ...)`): Rows of this process; R may differ between processes, and be 0.
        counts (`list[int]`): Rows of each process, from [`row_counts`].

    Returns:
        `torch.Tensor` of shape `(sum(counts), ...)`.

    Raises:
        ValueError: If `counts` does not say how many rows there are here.

    Example:
        >>> import torch
        >>> from modeling_pixclip.distributed_features import gather_rows, row_counts
        >>> embeds = torch.eye(2)
        >>> gather_rows(embeds, row_counts(len(embeds)))
        tensor([[1., 0.],
                [0., 1.]])
    """
    if counts[process_rank()] != len(values):
        raise ValueError(
            f"counts {counts} give process {process_rank()} {counts[process_rank()]} rows, and values has {len(values)}; "
            "take counts from row_counts(len(values))."
        )
    if world_size() == 1:
        return values
    return _gather_rows(values, counts)


class _GlobalSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value: torch.Tensor) -> torch.Tensor:
        total = value.detach().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient: torch.Tensor):
        # The sum over processes of their gradients, which are equal.
        return gradient * world_size()


_global_sum = torch.compiler.disable(_GlobalSum.apply)


def global_sum(value: torch.Tensor) -> torch.Tensor:
    """
    Sum of a tensor over all processes.

    Args:
        value (`torch.Tensor`): Of equal shape in each process.

    Returns:
        `torch.Tensor` of the same shape.

    Example:
        >>> import torch
        >>> from modeling_pixclip.distributed_features import global_sum
        >>> global_sum(torch.tensor(2.0))
        tensor(2.)
    """
    return value if world_size() == 1 else _global_sum(value)


def global_mean(values: torch.Tensor) -> torch.Tensor:
    """
    Mean over the values of all processes, in float32 at least; 0 where none has any.

    Args:
        values (`torch.Tensor` of shape `(R,)`): Values of this process; R may differ between processes, and be 0.

    Returns:
        `torch.Tensor`: Scalar.

    Example:
        >>> import torch
        >>> from modeling_pixclip.distributed_features import global_mean
        >>> global_mean(torch.tensor([1.0, 2.0]))
        tensor(1.5000)
    """
    count = global_count([values.numel()], values.device).clamp(min=1)
    return global_sum(values.to(torch.promote_types(values.dtype, torch.float32)).sum()) / count[0]


__all__ = [
    "barrier",
    "gather_rows",
    "global_count",
    "global_mean",
    "global_sum",
    "is_distributed",
    "join_rows",
    "process_rank",
    "row_counts",
    "sum_own_rows",
    "world_size",
]
