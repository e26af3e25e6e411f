"""No relation has an array of the features of all pairs, or of all triples, forward or backward."""

import functools
import math

import jax
import jax.numpy as jnp

from tests.loss_row import discrete
from tests.loss_table import RELATIONAL, each

BATCH, FEATURES = 256, 64


def largest(function, *shapes):
    """Returns the most elements that any operation returns, also in scans, branches and inner jits; and its name."""

    def walk(jaxpr):
        for equation in jaxpr.eqns:
            for variable in equation.outvars:
                yield math.prod(getattr(variable.aval, "shape", ())), str(equation.primitive)
            for parameter in jax.tree.leaves(
                list(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns")
            ):
                inner = getattr(parameter, "jaxpr", parameter)
                if hasattr(inner, "eqns"):
                    yield from walk(inner)

    return max(walk(jax.make_jaxpr(function)(*shapes).jaxpr))


def shapes(row, batch=BATCH):
    arrays = row.inputs(row.relation_shapes(batch, FEATURES))
    described = [jax.ShapeDtypeStruct(a.shape, jnp.int32 if discrete(a) else jnp.float32) for a in arrays]
    return jax.ShapeDtypeStruct((batch,), bool), *described


def gradients(function):
    def total(where, student, teacher, *rest):
        return function(student, teacher, *rest, where=where).sum()

    return jax.value_and_grad(total, argnums=(1, 2))


@each(RELATIONAL)
def test_memory(row):
    count, operation = largest(gradients(row.function), *shapes(row))
    assert BATCH * FEATURES <= count < BATCH * BATCH * FEATURES, f"{operation} returns {count} elements"


@each(RELATIONAL)
def test_memory_without_a_mask_and_within_jit(row):
    count, operation = largest(jax.jit(jax.grad(lambda *arrays: row.function(*arrays).sum())), *shapes(row)[1:])
    assert BATCH * FEATURES <= count < BATCH * BATCH * FEATURES, f"{operation} returns {count} elements"


@each(RELATIONAL)
def test_memory_is_quadratic_in_the_batch(row):
    """Four times the batch may take 16 times the memory; an array of all triples would take 64 times."""
    small, large = (largest(gradients(row.function), *shapes(row, batch))[0] for batch in (BATCH, 4 * BATCH))
    assert large <= 17 * small


@each(RELATIONAL)
def test_memory_on_several_devices(row):
    """Local anchors relate to the gathered batch: [local, global] pairs, no more than on one device."""
    devices = 4
    local = [jax.ShapeDtypeStruct((devices, BATCH // devices, *shape.shape[1:]), shape.dtype) for shape in shapes(row)]
    loss = gradients(functools.partial(row.function, axis_name="devices"))
    count, operation = largest(jax.vmap(loss, axis_name="devices"), *local)
    assert count < BATCH * BATCH * FEATURES, f"{operation} returns {count} elements"


def every_pair(student, teacher, *rest, where):
    """A loss with a [batch, batch, features] array inside a jit, a scan and a branch: what must be found."""

    def step(carry, _):
        squares = jax.lax.cond(
            carry.sum() > 0,
            lambda: ((student[:, None] - teacher[None]) ** 2).sum((1, 2)),
            lambda: jnp.zeros(len(where)),
        )
        return carry + squares, None

    return jnp.where(where, jax.jit(lambda: jax.lax.scan(step, jnp.ones(len(where)), length=2)[0])(), 0)


def test_the_search_finds_a_hidden_array():
    with jax.numpy_rank_promotion("allow"):
        assert largest(gradients(every_pair), *shapes(RELATIONAL[0]))[0] >= BATCH * BATCH * FEATURES
