"""Parts that the name maps of several PyTorch networks share."""

from __future__ import annotations


def conv_norm(torch_conv: str, torch_norm: str, module: str, number: int) -> dict[str, str]:
    """Maps one convolution and its BatchNorm.

    >>> conv_norm("conv1", "bn1", "Stem_0", 0)
    {'conv1': 'Stem_0/Conv_0', 'bn1': 'Stem_0/BatchNorm_0'}
    """
    return {torch_conv: f"{module}/Conv_{number}", torch_norm: f"{module}/BatchNorm_{number}"}


def numbered(prefix: str, module: str, count: int) -> dict[str, str]:
    """Maps ``conv1, bn1, conv2, …``, counted from 1, to a Flax module, counted from 0."""
    pairs = [conv_norm(f"{prefix}conv{i + 1}", f"{prefix}bn{i + 1}", module, i) for i in range(count)]
    return {name: place for pair in pairs for name, place in pair.items()}


def sequential(prefix: str, module: str, count: int) -> dict[str, str]:
    """Maps a ``Sequential`` of triples: convolution, BatchNorm and ReLU."""
    pairs = [conv_norm(f"{prefix}{3 * i}", f"{prefix}{3 * i + 1}", module, i) for i in range(count)]
    return {name: place for pair in pairs for name, place in pair.items()}


def whole_blocks(depth: int, rest: int, examples: str) -> int:
    """Returns the number of blocks per stage, ``n`` in ``depth = 6 n + rest``.

    Raises:
      ValueError: the depth has another form.
    """
    blocks, remainder = divmod(depth - rest, 6)
    if remainder or blocks < 1:
        raise ValueError(f"depth: expected 6 n + {rest} with n >= 1 ({examples}, …), got {depth}.")
    return blocks
