"""Models by name, with the paths of their taps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn

from jaxkd.models.vision import _mobilenet_v2, _resnet, _resnet50, _shufflenet_v1, _shufflenet_v2, _vgg, _wide_resnet


class Entry(NamedTuple):
    """Functions of one model: its constructor, its taps and its margin norms."""

    build: Callable[..., nn.Module]
    taps: Callable[[Any], dict[str, str]]
    margin_norms: Callable[[Any], dict[str, str]]


def _entries(family: Any, **builders: Callable[..., nn.Module]) -> dict[str, Entry]:
    """Returns the entries of one family, a module with ``taps`` and ``margin_norms``."""
    return {name: Entry(build, family.taps, family.margin_norms) for name, build in builders.items()}


_ZOO: dict[str, Entry] = {
    **_entries(
        _resnet,
        resnet8=_resnet.ResNet8,
        resnet14=_resnet.ResNet14,
        resnet20=_resnet.ResNet20,
        resnet32=_resnet.ResNet32,
        resnet44=_resnet.ResNet44,
        resnet56=_resnet.ResNet56,
        resnet110=_resnet.ResNet110,
        resnet8x4=_resnet.ResNet8x4,
        resnet32x4=_resnet.ResNet32x4,
    ),
    **_entries(_resnet50, resnet50=_resnet50.ResNet50),
    **_entries(
        _wide_resnet,
        wrn_16_1=_wide_resnet.WRN16x1,
        wrn_16_2=_wide_resnet.WRN16x2,
        wrn_40_1=_wide_resnet.WRN40x1,
        wrn_40_2=_wide_resnet.WRN40x2,
    ),
    **_entries(_vgg, vgg8=_vgg.VGG8, vgg11=_vgg.VGG11, vgg13=_vgg.VGG13, vgg16=_vgg.VGG16, vgg19=_vgg.VGG19),
    **_entries(_mobilenet_v2, mobilenet_v2=_mobilenet_v2.MobileNetV2),
    **_entries(_shufflenet_v1, shufflenet_v1=_shufflenet_v1.ShuffleNetV1),
    **_entries(_shufflenet_v2, shufflenet_v2=_shufflenet_v2.ShuffleNetV2),
}


def names() -> list[str]:
    """Returns the names of all models that `create` builds.

    >>> "resnet8x4" in names()
    True
    """
    return list(_ZOO)


def create(name: str, num_classes: int, **options: Any) -> nn.Module:
    """Builds a model by its name in the literature.

    Args:
      name: one of `names`, or another spelling that `canonical` accepts.
      num_classes: number of logits.
      **options: other fields of the model, such as ``dtype=jnp.bfloat16``.

    Returns:
      The Flax module; its ``__call__(x, train=False)`` returns logits.

    Raises:
      ValueError: there is no such name; the message lists the names.

    >>> create("resnet20", num_classes=100).depth
    20
    """
    return _entry(name).build(num_classes=num_classes, **options)


def taps(name: str) -> dict[str, str]:
    """Returns the path of each tapped submodule, by the name of its tap.

    Args:
      name: one of `names`.

    Returns:
      Paths of ``stem``, ``stage1``, ``stage2``, … and ``pooled``, as the literature taps them: after the ReLU, where
      the stage ends in one; and of ``stage1_preact``, ``stage2_preact``, …, the stages' features before a ReLU. The
      module of each family, such as that of `WideResNet`, has a table of taps and shapes.

    Raises:
      ValueError: there is no such name.

    >>> taps("resnet8x4")["stage2"], taps("wrn_40_2")["stage3_preact"]
    ('ResNetStage_1', 'WideResNetHead_0/BatchNorm_0')
    """
    entry = _entry(name)
    return entry.taps(entry.build())


def margin_norms(name: str) -> dict[str, str]:
    """Returns the path of the BatchNorm that gives each pre-activation tap's margin.

    `jaxkd.losses.overhaul_margin` computes the margins of the overhaul of feature distillation from its bias and scale.

    Args:
      name: one of `names`.

    Returns:
      For ``stage1_preact``, ``stage2_preact``, …, the path of a BatchNorm among the variables. For a sum, it belongs to
      the residual branch, as in the authors' code. Taps that depend on several BatchNorms are left out.

    Raises:
      ValueError: there is no such name.

    The margin of one stage from a teacher's Flax variables:

    >>> import jax, jax.numpy as jnp
    >>> from jaxkd import losses
    >>> teacher = create("resnet8", num_classes=10).init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    >>> norm = teacher["params"]
    >>> for part in margin_norms("resnet8")["stage2_preact"].split("/"):
    ...     norm = norm[part]
    >>> losses.overhaul_margin(norm["bias"], norm["scale"]).shape
    (32,)
    """
    entry = _entry(name)
    return entry.margin_norms(entry.build())


def canonical(name: str) -> str:
    """Returns the name of a model in `names`, from any spelling of the literature.

    Case, underscores and hyphens of the spelling do not matter.

    Raises:
      ValueError: there is no such name; the message lists the names.

    >>> canonical("MobileNetV2"), canonical("WRN-40-2"), canonical("resnet8x4")
    ('mobilenet_v2', 'wrn_40_2', 'resnet8x4')
    """
    found = _SPELLINGS.get(_plain(name))
    if found is None:
        raise ValueError(f"name: expected one of {names()}, got {name!r}.")
    return found


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")


_SPELLINGS = {_plain(name): name for name in _ZOO}


def _entry(name: str) -> Entry:
    return _ZOO[canonical(name)]
