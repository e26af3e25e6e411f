"""A softmax over one class is constant: every loss of one refuses it and names the losses of one logit."""

from typing import Any

import jax.numpy as jnp
import pytest

from jaxkd import losses

ONE, MAP, LABELS = jnp.ones((4, 1)), jnp.ones((4, 2, 3, 1)), jnp.zeros(4, int)
HEAD = jnp.ones((4, 2)), jnp.ones((2, 1))


def of_pair(name):
    return lambda: getattr(losses, name)(ONE, 2 * ONE)


CALLS: dict[str, Any] = {
    **{
        name: of_pair(name)
        for name in (
            "soft_target_kl",
            "reverse_kl",
            "generalized_jsd",
            "skew_kl",
            "skew_reverse_kl",
            "total_variation",
            "dist",
        )
    },
    "class_weighted_cross_entropy": lambda: losses.class_weighted_cross_entropy(ONE, 2 * ONE),
    "decoupled_kd": lambda: losses.decoupled_kd(ONE, 2 * ONE, LABELS),
    "decoupled_kd, mixed": lambda: losses.decoupled_kd(ONE, 2 * ONE, ONE),
    "top_k_kl": lambda: losses.top_k_kl(ONE, 0 * ONE, LABELS[:, None]),
    "cross_entropy": lambda: losses.cross_entropy(ONE, LABELS),
    "sparse_cross_entropy": lambda: losses.sparse_cross_entropy(ONE, ONE, LABELS[:, None]),
    "soft_cross_entropy": lambda: losses.soft_cross_entropy(ONE, ONE),
    "label_smoothing": lambda: losses.label_smoothing(ONE, LABELS),
    "virtual_teacher_kl": lambda: losses.virtual_teacher_kl(ONE, LABELS),
    "frame_kl": lambda: losses.frame_kl(MAP[:, 0], MAP[:, 0]),
    "pixel_kl": lambda: losses.pixel_kl(MAP, MAP),
    "linear_soft_target_kl": lambda: losses.linear_soft_target_kl(*HEAD, *HEAD),
    "linear_generalized_jsd": lambda: losses.linear_generalized_jsd(*HEAD, *HEAD),
    "linear_cross_entropy": lambda: losses.linear_cross_entropy(*HEAD, LABELS),
    "linear_sparse_cross_entropy": lambda: losses.linear_sparse_cross_entropy(*HEAD, ONE, LABELS[:, None]),
    "linear_top_k_kl": lambda: losses.linear_top_k_kl(*HEAD, 0 * ONE, LABELS[:, None]),
    "universal_logit_distance": lambda: losses.universal_logit_distance(MAP[:, 0, :, :1], jnp.ones((4, 3, 5))),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_one_class_is_an_error_that_names_the_binary_losses(call):
    with pytest.raises(ValueError, match=r"expected two or more (classes|words), got 1 .*binary_kl.*binary_cross_ent"):
        call()


def test_one_class_of_ctc():
    with pytest.raises(ValueError, match="two classes, one of them the blank"):
        losses.ctc(MAP[:, 0], LABELS[:, None])


def test_one_position_of_channel_kl():
    with pytest.raises(ValueError, match=r"expected two or more positions, got 1 .*hint_mse"):
        losses.channel_kl(jnp.ones((4, 1, 1, 3)), jnp.ones((4, 2, 2, 3)))


def test_losses_of_one_logit_that_are_no_softmax():
    """A regression of one logit is no constant, and neither is a sigmoid."""
    assert losses.logit_mse(ONE, 2 * ONE).tolist() == [0.5] * 4
    assert (losses.binary_kl(ONE, 2 * ONE) > 0).all()
