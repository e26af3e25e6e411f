"""Models by name, and where each can be tapped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn

from jaxkd.models import resnet

_BUILDERS: dict[str, Callable[..., Any]] = {
    "resnet8": resnet.ResNet8,
    "resnet14": resnet.ResNet14,
    "resnet20": resnet.ResNet20,
    "resnet32": resnet.ResNet32,
    "resnet44": resnet.ResNet44,
    "resnet56": resnet.ResNet56,
    "resnet110": resnet.ResNet110,
    "resnet8x4": resnet.ResNet8x4,
    "resnet32x4": resnet.ResNet32x4,
}


def names() -> list[str]:
    """The names that `create` knows.

    >>> "resnet8x4" in names()
    True
    """
    return list(_BUILDERS)


def create(name: str, num_classes: int, **options: Any) -> nn.Module:
    """A model by its name in the literature.

    Args:
      name: one of `names`, in lower case.
      num_classes: logits.
      **options: other fields of the model, such as ``dtype=jnp.bfloat16``.

    Returns:
      The Flax module; its ``__call__(x, train=False)`` gives logits.

    Raises:
      ValueError: there is no such name; the message lists them.

    >>> create("resnet20", num_classes=100).depth
    20
    """
    return _builder(name)(num_classes=num_classes, **options)


def taps(name: str) -> dict[str, str]:
    """Where a model can be tapped: our name for each point, and the path of the submodule whose output it is.

    Args:
      name: one of `names`.

    Returns:
      ``stem``, ``stage1`` to ``stage3`` and ``pooled``, after their ReLU, and ``stage1_preact`` to ``stage3_preact``,
      before it.

    Raises:
      ValueError: there is no such name.

    >>> taps("resnet8x4")["stage2"], taps("resnet32")["stage3_preact"]
    ('ResNetStage_1', 'ResNetStage_2/BasicBlock_4/Residual_0')
    """
    model = _builder(name)(num_classes=1)
    last = resnet.blocks_per_stage(model.depth) - 1
    stages = range(len(model.num_filters) - 1)
    return {
        "stem": "ResNetStem_0",
        **{f"stage{number + 1}": f"ResNetStage_{number}" for number in stages},
        "pooled": "GlobalAveragePool_0",
        **{f"stage{number + 1}_preact": f"ResNetStage_{number}/BasicBlock_{last}/Residual_0" for number in stages},
    }


def _builder(name: str) -> Callable[..., Any]:
    if name not in _BUILDERS:
        raise ValueError(f"name: expected one of {names()}, got {name!r}.")
    return _BUILDERS[name]
