"""Identity of a run: any change of what is computed is refused with its name, and harmless settings are not."""

import gzip
import json
import os
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxkd
from jaxkd import losses, parallel
from jaxkd.data import Dataset, Resident, Stream
from jaxkd.distillers import preprocess
from jaxkd.teachers import frozen
from jaxkd.training import _computation, fit
from jaxkd.training._traced_program import trace

FEATURES, CLASSES = 5, 3


def model(scale=1.0, activation=jnp.tanh):
    def apply(params, x):
        return {"logits": activation(x @ params["w"]) @ params["v"], "hidden": x @ params["w"]}

    def init(key, x):
        first, second = jax.random.split(key)
        shapes = (first, (FEATURES, 4)), (second, (4, CLASSES))
        w, v = (scale * jax.random.normal(key, shape) for key, shape in shapes)
        return {"w": w, "v": v}

    return jaxkd.adapters.plain(init, apply, inputs="x")


def weights(seed=5, **settings):
    return model(**settings).init(jax.random.key(seed), {"x": jnp.zeros((1, FEATURES))})


CLASS_WEIGHTS = np.linspace(1.0, 2.0, 20, dtype=np.float32)


def distillation(
    temperature=4.0, rate=0.1, weight=0.9, loss=losses.soft_target_kl, seed=5, scale=1.0, activation=jnp.tanh,
    momentum=None, shift=None, inject=False, metric=None, bank=CLASS_WEIGHTS,
):  # fmt: skip
    def scaled(student, teacher, temperature=4.0):
        options = {} if loss is losses.logit_mse else {"temperature": temperature}
        return loss(student, teacher, **options) * jnp.asarray(bank).sum()

    objective = jaxkd.combine(
        ce=jaxkd.term(losses.cross_entropy, "student/logits", "batch/label", weight=0.1),
        kd=jaxkd.term(scaled, "student/logits", "teacher/logits", weight=weight, temperature=temperature),
    )
    sgd = optax.inject_hyperparams(optax.sgd)(rate) if inject else optax.sgd(rate, momentum=momentum)
    teacher = frozen(model(activation=activation), weights(seed))
    kd = jaxkd.distill(model(scale), teacher, objective, optimizer=sgd)
    if shift is None:
        return kd
    return preprocess(kd, train_transform=lambda batch: {**batch, "x": batch["x"] + shift})


def dataset(change=0.0, row=17):
    draw = np.random.default_rng(0)
    x = draw.normal(size=(24, FEATURES)).astype(np.float32)
    x[row] += change
    arrays = {"x": x, "label": draw.integers(0, CLASSES, 24).astype(np.int32), "index": np.arange(24, dtype=np.int32)}
    return Dataset(arrays, CLASSES, "toy")


def run(directory, kd=None, *, train=None, key=0, **settings):
    train = Resident(dataset(), 8) if train is None else train
    val = Resident(dataset(), 8, shuffle=False)
    settings = {"steps": 3, "eval_data": val, "progress": False, "tensorboard": False, **settings}
    if "state" not in settings:
        settings["key"] = jax.random.key(key)
    return fit(distillation() if kd is None else kd, train, directory=directory, **settings)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    directory = tmp_path_factory.mktemp("finished")
    run(directory)
    return directory


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"temperature": 2.0}, r"step: .* equation \d+, from .*: stored '.* 4\.0.*', given '.* 2\.0.*'"),
        ({"rate": 0.2}, r"step: .*optax/.*: stored '.* -0\.1 .*', given '.* -0\.2 .*'"),
        ({"rate": optax.linear_schedule(0.1, 0.0, 9)}, r"state\.opt_state/.*count: stored nothing"),
        ({"weight": 0.8}, r"step: .* 0\.9.* 0\.8"),
        ({"loss": losses.logit_mse}, r"step: "),
        ({"momentum": 0.9}, r"state\.opt_state/"),
        ({"shift": 0.5}, r"step: .* 0\.5"),
        ({"seed": 6}, r"teacher: 2 of 2 arrays start with other values, first teacher/params/v"),
        ({"activation": jax.nn.relu}, r"step: "),
        ({"scale": 0.5}, r"student: 2 of 2 arrays start with other values"),
        # More than 8 elements, which a jaxpr abbreviates: one of them differs in its last bit.
        ({"bank": np.nextafter(CLASS_WEIGHTS, 9, dtype=np.float32)}, r"step: .*float32\[20\]#\w+"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_run_with_another_computation_is_refused(changed, message, finished):
    with pytest.raises(ValueError, match=rf"(?s)holds a different run:\n  {message}.*Make these equal"):
        run(finished, distillation(**changed))


def test_learning_rate_in_the_optimizer_state_is_compared(tmp_path):
    run(tmp_path, distillation(inject=True))
    with pytest.raises(ValueError, match=r"opt_state: 2 of \d+ arrays start with other values, first .*learning_rate"):
        run(tmp_path, distillation(inject=True, rate=0.2))


def test_evaluation_is_compared(tmp_path, finished):
    kd = distillation()

    def evaluate(state, batch):
        return kd.evaluate(state, {**batch, "x": 2 * batch["x"]})

    with pytest.raises(ValueError, match=r"different run:\n  evaluate: the programs differ first in equation"):
        run(finished, kd._replace(evaluate=evaluate))


def test_order_of_resident_batches_and_their_arrays_are_compared_without_a_fingerprint(tmp_path):
    class Bare:
        """A resident input that has no fingerprint."""

        def __init__(self, change=0.0, stride=1):
            self.inner, self.stride = Resident(dataset(change), 8), stride
            self.arrays, self.batch_size, self.steps_per_epoch = self.inner.arrays, 8, 3

        def gather(self, arrays, step):
            return self.inner.gather(arrays, self.stride * step)

        def batches(self, state=None):
            raise AssertionError

    run(tmp_path, train=Bare())
    assert int(run(tmp_path, train=Bare()).state.step) == 3
    with pytest.raises(ValueError, match=r"data\.train\.arrays\.x: stored"):
        run(tmp_path, train=Bare(change=1.0))
    with pytest.raises(ValueError, match=r"train batches: the programs differ"):
        run(tmp_path, train=Bare(stride=2))


def test_functions_of_a_stream_are_compared(tmp_path):
    """Row 3 alone is changed: neither the first nor the last example shows it."""

    def only_one(row):
        return lambda example: {**example, "x": example["x"] + (1.0 if example["index"] == row else 0.0)}

    def stream(row, shift=None):
        made = Stream(dataset(), 8, transform=only_one(row))
        return made if shift is None else made.map(lambda batch: {**batch, "x": batch["x"] + shift})

    run(tmp_path / "a", train=stream(3))
    assert int(run(tmp_path / "a", train=stream(3)).state.step) == 3
    with pytest.raises(ValueError, match=r"data\.train\.functions in Python"):
        run(tmp_path / "a", train=stream(4))
    run(tmp_path / "b", train=stream(3, 0.0))
    with pytest.raises(ValueError, match=r"data\.train\.functions in Python"):
        run(tmp_path / "b", train=stream(3, 1.0))


class Bare:
    """A streaming input that has no fingerprint."""

    def __init__(self, change=0.0):
        self.inner, self.batch_size, self.steps_per_epoch = Resident(dataset(change, row=slice(None)), 8), 8, 3

    def batches(self, state=None):
        return self.inner.batches(state)


def test_other_first_batch_of_an_input_without_a_fingerprint_is_refused(tmp_path):
    def bare(train=0.0, val=0.0, steps=2):
        return run(tmp_path, train=Bare(train), eval_data=Bare(val), steps=steps)

    class Named(Bare):
        """The same input with a fingerprint, which decides alone."""

        def fingerprint(self):
            return {"version": "v3"}

    bare()
    for steps in (2, 3):  # a finished run, and one that would resume within an epoch
        with pytest.raises(ValueError, match=r"different run:\n  data\.train\.first_batch\.x: (?s:.*)fingerprint\(\)"):
            bare(train=1.0, steps=steps)
    with pytest.raises(ValueError, match=r"different run:\n  data\.eval\.first_batch\.x: "):
        bare(val=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert int(bare(steps=3).state.step) == 3
        run(tmp_path, train=Named(change=1.0), eval_data=Bare())


def test_initial_state_that_is_given_is_compared(tmp_path):
    batch = {name: jnp.asarray(value[:8]) for name, value in dataset().arrays.items()}
    states = [distillation(scale=scale).init(jax.random.key(1), batch) for scale in (1.0, 2.0)]
    run(tmp_path, state=states[0])
    run(tmp_path, state=states[0])
    with pytest.raises(ValueError, match=r"student: 2 of 2 arrays start with other values"):
        run(tmp_path, state=states[1])


def test_harmless_settings_may_change(finished, tmp_path):
    os.rename(finished, tmp_path / "moved")
    try:
        result = run(tmp_path / "moved", log_every=7, chunk=2, keep=1, checkpoint_every=2, steps=4, progress=True)
    finally:
        os.rename(tmp_path / "moved", finished)
    assert int(result.state.step) == 4


def sharded(kd):
    return parallel.shard(kd, jax.make_mesh((8,), ("data",)))


@pytest.mark.parametrize("place", [parallel.jit, parallel.pmap, sharded])
def test_run_resumes_under_another_placement_and_not_with_another_step(place, tmp_path):
    run(tmp_path, place(distillation()))
    fewer = parallel.pmap(distillation(), devices=jax.devices()[:2])
    for kd in (distillation(), fewer):
        assert int(run(tmp_path, kd).state.step) == 3
    with pytest.raises(ValueError, match=r"step: .* 4\.0.* 2\.0"):
        run(tmp_path, place(distillation(temperature=2.0)))


def test_replicas_that_are_asked_for_belong_to_the_step():
    kd = parallel.jit(distillation(), replicas=2)
    assert parallel.jit(distillation()).source.step is not kd.source.step
    assert kd._replace(init=kd.init).source is None


def test_other_jax_version_is_a_warning_that_shows_the_difference(tmp_path):
    run(tmp_path)
    for path in [tmp_path / "config.json", *tmp_path.glob("checkpoints/*/extra.json")]:
        text = path.read_text()
        assert f'"jax": "{jax.__version__}"' in text
        path.write_text(text.replace(f'"jax": "{jax.__version__}"', '"jax": "0.0.1"'))
    for path in tmp_path.glob("checkpoints/*/SHA256SUMS"):
        path.unlink()
        jaxkd._core.digests.write_digests(path.parent)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(tmp_path)  # the texts are equal
    with pytest.warns(UserWarning, match=r"(?s)jax 0\.0\.1 before and .* now.*not certain.*step: .* 4\.0.* 2\.0"):
        run(tmp_path, distillation(temperature=2.0))
    with pytest.raises(ValueError, match="config: stored None, given 3"):
        run(tmp_path, config=3)


def test_without_the_text_the_refusal_names_the_program(tmp_path):
    run(tmp_path)
    (tmp_path / _computation.NAME).write_bytes(gzip.compress(b"step\nx")[:-4])
    with pytest.raises(ValueError, match=r"step: stored the program \w{32}, given \w{32}"):
        run(tmp_path, distillation(temperature=2.0))


def test_stream_that_ends_with_a_smaller_batch_resumes_there():
    large, small = ({"x": np.zeros((n, FEATURES), np.float32), "label": np.zeros(n, np.int32)} for n in (8, 3))
    kd = distillation()
    state = kd.init(jax.random.key(0), large)
    first = _computation.describe_computation(kd, None, {}, state=state, batch=large, stored={}).identity
    again = _computation.describe_computation(kd, None, {}, state=state, batch=small, stored=first).identity
    assert first == again


# --- the text of a program --------------------------------------------------------------------------------------------


def test_text_is_equal_in_another_process_and_holds_no_addresses():
    program = (
        "import jax, numpy as np; from tests.training import identity_test as t; kd = t.distillation(inject=True); "
        "b = {'x': np.zeros((8, 5), np.float32), 'label': np.zeros(8, np.int32)}; "
        "print(t.trace(kd.step, state=jax.eval_shape(kd.init, jax.random.key(0), b), batch=b).text)"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7", "JAX_PLATFORMS": "cpu"}
    other = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    kd, batch = distillation(inject=True), {"x": np.zeros((8, 5), np.float32), "label": np.zeros(8, np.int32)}
    text = trace(kd.step, state=jax.eval_shape(kd.init, jax.random.key(0), batch), batch=batch).text
    assert other.stdout.rstrip("\n") == text
    assert "0x" not in text


def program(function, *arguments):
    return trace(function, **{f"a{i}": argument for i, argument in enumerate(arguments)}).digest


def test_constants_are_compared_wherever_they_stand():
    x = jnp.ones(3)
    one, other = np.arange(30.0, dtype=np.float32), np.arange(30.0, dtype=np.float32)
    other[20] = -1

    def within(wrap):
        return [program(wrap(jnp.asarray(constant)), x) for constant in (one, one.copy(), other)]

    def scanned(constant):
        return lambda x: jax.lax.scan(lambda c, _: (c + constant.sum(), None), x, length=2)[0]

    def branched(constant):
        return lambda x: jax.lax.cond(x[0] > 0, lambda x: x * constant[2:5], lambda x: x, x)

    def compiled(constant):
        return jax.jit(lambda x: x + jax.jit(lambda x: x * constant[:3])(x))

    def checkpointed(constant):
        return jax.checkpoint(lambda x: jnp.sin(x) * constant[3:6])

    def called(constant):
        return lambda x: jax.pure_callback(lambda x: x * constant[20], x, x)

    for wrap in (scanned, branched, compiled, checkpointed, called):
        same, again, different = within(wrap)
        assert same == again != different, wrap


def test_keys_and_custom_gradients_are_compared():
    @jax.custom_vjp
    def double(x):
        return 2 * x

    double.defvjp(lambda x: (2 * x, None), lambda _, g: (g,))
    x = jnp.ones(3)
    keys = [jax.random.key(0), jax.random.key(0), jax.random.key(1)]
    first, again, other = (program(lambda x, key=key: x + jax.random.normal(key, (3,)), x) for key in keys)
    assert first == again != other
    assert program(double, x) != program(lambda x: 2 * x, x)
    assert program(jax.grad(lambda x: double(x).sum()), x) != program(jax.grad(lambda x: (2 * x).sum()), x)


def test_identity_is_written_as_plain_data(finished):
    config = json.loads((finished / "config.json").read_text())
    assert set(config["programs"]) == {"step", "evaluate", "train batches", "eval batches"}
    assert config["initial"]["step"].startswith("#")
    w = np.asarray(weights(5).params["w"], np.float64)
    norm = float(config["initial"]["teacher/params/w"].split()[0])
    assert norm == pytest.approx(np.sqrt((w**2).sum()), rel=1e-6)
