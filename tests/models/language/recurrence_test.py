"""The gated linear recurrence against its formulas, its masks, its state and its taps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxkd
from jaxkd import adapters
from jaxkd.models import GatedRecurrence, RecurrenceConfig, generate, generator, layer_taps, token_inputs
from tests.models.language import reference, tiny_models

CONFIG = RecurrenceConfig(vocabulary=13, width=8, layers=2, mlp_width=12, state_width=6)


@pytest.fixture(scope="module")
def model():
    return tiny_models.build(CONFIG, GatedRecurrence)


def test_logits_equal_the_formulas(model):
    tokens = tiny_models.tokens_of(2, 6)
    params = tiny_models.params_of(model)
    found = tiny_models.call(model, tokens)
    np.testing.assert_allclose(
        found, [reference.recurrence(params, row, CONFIG) for row in tokens], rtol=1e-4, atol=1e-5
    )


def test_packed_and_padded_logits_are_the_separate_ones(model):
    documents = [tiny_models.tokens_of(1, length, seed=length) for length in (3, 1, 4)]
    tokens = np.concatenate([*documents, np.full((1, 2), 99, np.int32)], axis=1)
    segments = np.repeat([1, 2, 3, 0], [3, 1, 4, 2])[None].astype(np.int32)
    found = tiny_models.call(model, tokens, segments > 0, segments)
    separate = [tiny_models.call(model, row) for row in documents]
    np.testing.assert_allclose(found[:, :8], np.concatenate(separate, axis=1), rtol=1e-4, atol=1e-5)
    holes = np.insert(tokens[:, :3], [1, 2], 99, axis=1)
    mask = np.array([[True, False, True, False, True]])
    np.testing.assert_allclose(tiny_models.call(model, holes, mask)[mask], separate[0][0], rtol=1e-4, atol=1e-5)


def test_the_state_replaces_the_tokens_before(model):
    tokens = tiny_models.tokens_of(2, 6)
    mask = np.ones((2, 6), bool)
    mask[0, 3] = mask[1, 1] = mask[1, 4] = False
    wanted = tiny_models.call(model, tokens, mask)
    logits, states = tiny_models.prefill(model, tokens[:, :4], mask[:, :4], length=2)
    np.testing.assert_allclose(logits, np.stack([wanted[0, 2], wanted[1, 3]]), rtol=1e-4, atol=1e-5)
    for number in (4, 5):
        logits, states = tiny_models.next_logits(model, states, tokens[:, number], mask[:, number])
        kept = mask[:, number]
        np.testing.assert_allclose(logits[kept], wanted[kept, number], rtol=1e-4, atol=1e-5)


def test_gradients_are_finite_where_the_mask_leaves_the_state():
    model = tiny_models.build(CONFIG, GatedRecurrence)
    mask = jnp.array([[False, False, False], [True, False, True]])

    @jax.jit
    def total(params):
        return jnp.sum(nnx.merge(nnx.graphdef(model), params)(jnp.zeros((2, 3), int), mask))

    found = jax.jit(jax.value_and_grad(total))(nnx.state(model))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(found))


@pytest.mark.slow
def test_a_student_can_be_tapped_and_generates_in_a_step(model):
    adapter = adapters.nnx(
        lambda rngs: GatedRecurrence(CONFIG, rngs=rngs), taps=layer_taps(CONFIG), inputs=token_inputs
    )
    batch = {"tokens": tiny_models.tokens_of(4, 3)}
    variables = adapters.variables(model)
    make = generator(lambda rngs: GatedRecurrence(CONFIG, rngs=rngs), prompt=2, length=3, temperature=0.0)
    keys = jax.random.split(jax.random.key(0), 4)

    def step(variables, batch, keys):
        made = make(variables, batch, keys=keys)
        return made, adapter.apply(variables, made, key=None, train=False)[0]

    made, out = jax.jit(step)(variables, batch, keys)
    assert out["states1"].shape == (4, 5, 6) and out["hidden0"].shape == out["embedding"].shape == (4, 5, 8)
    np.testing.assert_array_equal(jnp.argmax(out["logits"], -1)[made["mask"]], made["label"][made["mask"]])
    mesh = jax.make_mesh((2,), (jaxkd.DATA_AXIS,), axis_types=(jax.sharding.AxisType.Auto,))
    spec, none = jax.sharding.PartitionSpec(jaxkd.DATA_AXIS), jax.sharding.PartitionSpec()
    split = jax.shard_map(step, mesh=mesh, in_specs=(none, spec, spec), out_specs=spec)
    jax.tree.map(np.testing.assert_array_equal, jax.jit(split)(variables, batch, keys)[0]["tokens"], made["tokens"])


def test_generation_continues_a_ragged_prompt(model):
    tokens, mask = tiny_models.tokens_of(2, 4), np.array([[True] * 4, [True, True, False, False]])
    run = nnx.jit(
        lambda model, tokens, mask: generate(
            model.next_logits, model.prefill(tokens, mask, length=3), length=3, temperature=0.0
        )
    )
    np.testing.assert_array_equal(
        run(model, tokens, mask).tokens[1], run(model, tokens[1:, :2], mask[1:, :2]).tokens[0]
    )
