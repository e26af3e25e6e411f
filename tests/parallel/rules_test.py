"""Sharded states: bytes per device, memory of the program, donation and tracing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

import jaxkd
from jaxkd import losses, parallel, term
from jaxkd.parallel._rules import layout
from jaxkd.training import _compiled_steps
from tests import tiny
from tests.parallel.placements_test import mesh

WIDTH, DEVICES = 256, 8


def _apply(params, x):
    hidden = jnp.tanh(x @ params["first"])
    return {"logits": jnp.tanh(hidden @ params["second"]) @ params["third"]}


def _init(key, x):
    keys = jax.random.split(key, 3)
    sizes = [(x.shape[1], WIDTH), (WIDTH, WIDTH), (WIDTH, tiny.CLASSES)]
    names = ("first", "second", "third")
    return {name: 0.1 * jax.random.normal(k, size) for name, k, size in zip(names, keys, sizes, strict=True)}


MODEL = jaxkd.adapters.plain(_init, _apply, inputs="x")


def batch(size=16, seed=0):
    rng = np.random.default_rng(seed)
    return {"x": rng.normal(size=(size, 8)).astype(np.float32), "label": rng.integers(0, 3, size).astype(np.int32)}


def distiller(dtype=jnp.float32):
    weights = jax.tree.map(lambda x: x.astype(dtype), MODEL.init(jax.random.key(7), batch()))
    objective = jaxkd.combine(
        ce=term(losses.cross_entropy, "student/logits", "batch/label"),
        kd=term(losses.soft_target_kl, "student/logits", "teacher/logits", temperature=2.0),
    )
    return jaxkd.distill(
        MODEL, jaxkd.teachers.frozen(MODEL, weights), objective, optimizer=optax.sgd(0.1, momentum=0.9)
    )


@pytest.fixture(scope="module")
def kd():
    return distiller()


def held(state, device):
    """Number of bytes of a state on one device."""
    leaves = [x for x in jax.tree.leaves(state) if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)]
    return sum(part.data.nbytes for x in leaves for part in x.addressable_shards if part.device == device)


def specs(tree):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(x.sharding.spec)
        for path, x in jax.tree_util.tree_flatten_with_path(tree)[0]
    }


def test_each_device_holds_its_part(kd):
    placed = parallel.shard(kd, mesh(DEVICES), rules={"": parallel.fully_sharded(mesh(DEVICES), min_size=512)})
    alone = kd.init(jax.random.key(1), batch())
    everything = held(alone, jax.devices()[0])
    state = placed.init(jax.random.key(1), batch())
    for _ in range(2):
        assert everything / DEVICES <= held(state, jax.devices()[3]) < 1.02 * everything / DEVICES
        state, _ = placed(state, batch())
    assert specs(state.student.params) == {"first": (None, "data"), "second": (None, "data"), "third": ("data",)}
    assert specs(state.opt_state["student"]) == {f"0/trace/{k}": v for k, v in specs(state.student.params).items()}


def test_program_of_a_sharded_state_needs_less_memory(kd):
    def needed(rules):
        placed = parallel.shard(kd, mesh(DEVICES), rules=rules)
        state = placed.init(jax.random.key(1), batch())
        # As in `fit`, the step is compiled within a larger program.
        memory = (
            jax.jit(placed.step, donate_argnums=0).lower(state, placed.intake()(batch())).compile().memory_analysis()
        )
        return memory.argument_size_in_bytes, memory.temp_size_in_bytes

    whole, parts = needed(None), needed({"": parallel.fully_sharded(mesh(DEVICES), min_size=512)})
    assert parts[0] < 1.1 * whole[0] / DEVICES
    assert parts[1] < whole[1]


def test_state_is_made_in_parts_and_weights_of_the_caller_are_kept():
    weights = MODEL.init(jax.random.key(7), batch())
    teacher = jaxkd.teachers.frozen(MODEL, weights)
    kd = jaxkd.distill(
        MODEL, teacher, term(losses.soft_target_kl, "student/logits", "teacher/logits"), optimizer=optax.adam(1e-3)
    )
    placed = parallel.shard(kd, mesh(4), rules={"": parallel.fully_sharded(mesh(4), min_size=512)})
    state = placed.init(jax.random.key(1), batch())
    tiny.assert_close(state, kd.init(jax.random.key(1), batch()))
    state, _ = placed(state, batch())
    assert not any(x.is_deleted() for x in jax.tree.leaves(weights))


@pytest.mark.parametrize("rules", [None, {"": parallel.fully_sharded(mesh(4), min_size=512)}], ids=["whole", "parts"])
def test_state_is_donated_and_step_traced_once(kd, rules):
    traces = []

    def counted(state, batch):
        traces.append(1)
        return kd.step(state, batch)

    placed = parallel.shard(kd._replace(step=counted), mesh(4), rules=rules)
    state = placed.init(jax.random.key(1), batch())
    for seed in range(4):
        before, (state, _) = state, placed(state, batch(seed=seed))
        assert all(x.is_deleted() for x in jax.tree.leaves((before.student, before.opt_state, before.teacher)))
    assert len(traces) == 1


@pytest.mark.slow
def test_bfloat16_teacher_and_float32_student_with_separate_rules():
    kd = distiller(jnp.bfloat16)
    two = mesh(8, ("data", "model"), (4, 2))
    rules = {
        "^teacher/": parallel.fully_sharded(two, "model", min_size=512),
        "student/params/second|student/0/trace/second": PartitionSpec("data", "model"),
        "student/": parallel.fully_sharded(two, "data", min_size=512),
    }
    placed = parallel.shard(kd, two, rules=rules)
    state, alone, step = placed.init(jax.random.key(1), batch()), kd.init(jax.random.key(1), batch()), jax.jit(kd.step)
    for seed, size in enumerate((16, 13, 16)):
        state, found = placed(state, batch(size, seed))
        alone, expected = step(alone, batch(size, seed))
        assert tiny.numbers(found) == pytest.approx(tiny.numbers(expected), rel=1e-3)
    tiny.assert_close(state, alone, rtol=1e-3, atol=1e-4)
    assert {x.dtype for x in jax.tree.leaves(state.teacher)} == {jnp.dtype(jnp.bfloat16)}
    assert {x.dtype for x in jax.tree.leaves((state.student, state.opt_state))} == {jnp.dtype(jnp.float32)}
    assert specs(state.teacher.params) == {"first": (None, "model"), "second": (None, "model"), "third": ("model",)}
    assert specs(state.student.params) == {"first": (None, "data"), "second": ("data", "model"), "third": ("data",)}
    assert specs(state.opt_state["student"])["0/trace/second"] == ("data", "model")


def test_resident_data_is_gathered_in_parts(kd):
    """In a chunk of `fit`, each device gathers its share of the batch and holds its part of the weights."""
    examples = jaxkd.data.from_arrays(batch(64)["x"], batch(64)["label"])
    resident = jaxkd.data.Resident(examples, batch_size=32, shuffle=False)
    image = jaxkd.adapters.plain(_init, _apply)
    teacher = jaxkd.teachers.frozen(image, image.init(jax.random.key(7), {"image": batch()["x"]}))
    objective = term(losses.soft_target_kl, "student/logits", "teacher/logits")
    kd = jaxkd.distill(image, teacher, objective, optimizer=optax.sgd(0.1))
    found, flops = {}, {}
    for name, placed in {
        "jit": parallel.jit(kd),
        "shard": parallel.shard(kd, mesh(8)),
        "parts": parallel.shard(kd, mesh(8), rules={"": parallel.fully_sharded(mesh(8), min_size=512)}),
    }.items():
        result = jaxkd.training.fit(placed, resident, steps=4, key=jax.random.key(1), progress=False)
        found[name] = result.state
        chunk = _compiled_steps.run_chunk(placed.step, resident.gather)
        arrays = jaxkd.parallel.replicated_arrays(result.state, resident)
        compiled = chunk.lower(result.state, arrays, jnp.int32(0), length=4).compile()
        flops[name] = compiled.cost_analysis()["flops"]
    tiny.assert_close(found["shard"], found["jit"], rtol=1e-4, atol=1e-5)
    tiny.assert_close(found["parts"], found["jit"], rtol=1e-4, atol=1e-5)
    assert flops["shard"] < flops["jit"] / 4
    assert tuple(found["parts"].student.params["second"].sharding.spec) == (None, "data")


# --- rules ----------------------------------------------------------------------------------------------------------


def test_first_matching_rule_applies():
    tree = {"a": jnp.zeros((4, 4)), "b": {"a": jnp.zeros(4)}}
    placed = layout(tree, mesh(2), {"^a": PartitionSpec("data"), "a": lambda shape: PartitionSpec()})
    assert tuple(placed["a"].spec) == ("data",)
    assert tuple(placed["b"]["a"].spec) == ()


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (PartitionSpec("data"), r"w float32\[3\] does not divide into 2 parts of the mesh axis 'data'"),
        (PartitionSpec(None, "data"), r"w float32\[3\] has fewer dimensions than"),
        (PartitionSpec("dta"), r"shard, rules, mesh axis 'dta'.*did you mean 'data'"),
    ],
)
def test_rules_that_do_not_fit_an_array_are_refused(rule, message):
    with pytest.raises(ValueError, match=message):
        layout({"w": jnp.zeros(3)}, mesh(2), {"w": rule})


def test_unknown_axis_of_fully_sharded_is_refused():
    with pytest.raises(ValueError, match=r"fully_sharded, mesh axis 'dta'.*did you mean 'data'"):
        parallel.fully_sharded(mesh(2), "dta")
