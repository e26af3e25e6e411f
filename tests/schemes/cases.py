"""The table of schemes for `conformance_test`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxkd
from jaxkd import adapters, combine, data, losses, objectives, schemes, teachers, term, wrappers
from jaxkd.objectives import discriminators
from tests import tiny
from tests.schemes import networks
from tests.schemes.peers_toy import CLIPPED, normed

SGD, ADAM = optax.sgd(0.05, momentum=0.9), optax.adam(1e-2)
CE = term(losses.cross_entropy, "student/logits", "batch/label")
KL = term(losses.soft_target_kl, "student/logits", "teacher/logits", temperature=2.0)
BOTH = combine(ce=CE, kd=KL)


class Case(NamedTuple):
    """A scheme and what its tests need.

    Attributes:
      kd: the distiller.
      model: the exported model.
      pick: function from the state to the exported variables.
      fixed: function from the state to what training must not change.
      batch: ``(size, seed) -> batch`` for training.
      seen: the same for evaluation, if it differs.
      train: training data of 32 examples, if not made of such batches.
    """

    kd: jaxkd.Distiller
    model: jaxkd.Model = tiny.student
    pick: Callable[[Any], jaxkd.Variables] = lambda state: state.student
    fixed: Callable[[Any], Any] = lambda state: state.teacher
    batch: Callable[[int, int], dict] = tiny.batch
    seen: Callable[[int, int], dict] | None = None
    train: Callable[[], Any] | None = None

    def to_evaluate(self, size, seed):
        return (self.seen or self.batch)(size, seed)


def distilled(objective=BOTH, student=tiny.student, teacher=None, **options):
    return jaxkd.distill(student, teacher or tiny.teacher(), objective, optimizer=SGD, **options)


def member(name):
    return lambda state: wrappers.get_member(state.student, name)


def nothing(state):
    return ()


def with_views(size, seed=0):
    """Returns a batch with a partner, a distortion and the left half of each image."""
    batch = tiny.batch(size, seed)
    other = tiny.batch(size, seed + 1000)["image"]
    return {**batch, "pair": other, "view": batch["image"] + 0.1 * other, "left": batch["image"][:, :, :2]}


# --- the table -------------------------------------------------------------------------------------------------------


def loader(batch, **options):
    """Returns data of 32 examples, four batches."""
    parts = [batch(8, i) for i in range(4)]
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    arrays["index"] = np.arange(32, dtype=np.int32)
    return data.Resident(data.Dataset(arrays, tiny.CLASSES, "tiny"), batch_size=8, **options)


def offline():
    return Case(distilled())


def staged():
    hint = combine(hint=objectives.hint("student/map", "teacher/map"))
    return Case(
        schemes.staged(
            tiny.student, tiny.teacher(), schemes.phases.Stage(hint, ADAM, 2), schemes.phases.Stage(BOTH, SGD)
        )
    )


def born_again():
    kd = schemes.born_again(tiny.student, BOTH, first=combine(ce=CE), generations=2, steps=2, optimizer=SGD)
    return Case(kd, pick=member("2"), fixed=nothing)


def assistants():
    chain = {"assistant": tiny.teacher_model}
    kd = schemes.assistants(tiny.student, tiny.teacher(), BOTH, assistants=chain, steps=2, optimizer=SGD)
    return Case(kd, pick=member("student"), fixed=lambda state: state.teacher["assistant"])


def mean_teacher_with_crd():
    objective = combine(ce=CE, crd=objectives.crd_in_batch("student/vector", "teacher/vector", embedding_size=3))
    return Case(distilled(objective, teacher=teachers.ema(tiny.student, decay=0.9)), fixed=nothing)


def several_teachers():
    other = tiny.student.init(jax.random.key(8), tiny.batch(1))
    members = {"a": tiny.teacher(), "b": teachers.frozen(tiny.student, other)}
    votes = term(losses.voted_dissimilarity, "student/vector", ("teacher/a/vector", "teacher/b/vector"))
    objective = combine(ce=CE, kd=objectives.learned_ensemble(), votes=votes)
    return Case(distilled(objective, teacher=teachers.ensemble(members)))


def knowledge_flow():
    module = networks.Convolutional(norm=True)
    mixes = {"first": wrappers.FlowEdge("Conv_0", ["map"])}
    student = wrappers.with_flow(module, mixes, optax.linear_schedule(1.0, 0.0, 4))
    objective = combine(ce=CE, alone=schemes.transfer.dependence_loss(weight=0.1))
    kd = schemes.knowledge_flow(student, tiny.teacher(), objective, optimizer=SGD)
    return Case(kd, adapters.linen(module), lambda state: wrappers.extract_student(state.student))


def be_your_own_teacher():
    head = adapters.plain(
        lambda key, f: 0.5 * jax.random.normal(key, (f.shape[-1], tiny.CLASSES)),
        lambda w, f: {"logits": f.mean(axis=(1, 2)) @ w, "feature": f.mean(axis=(1, 2))},
        inputs="feature",
    )
    exits = {"early": wrappers.Exit("map", head)}
    kd = schemes.byot(tiny.student, exits, optimizer=SGD, feature="vector")
    return Case(kd, pick=member("model"), fixed=nothing)


def class_wise():
    return Case(schemes.class_wise(tiny.student, optimizer=SGD), fixed=nothing, batch=with_views)


def two_views():
    return Case(schemes.distorted_views(tiny.student, optimizer=SGD, feature="vector"), fixed=nothing, batch=with_views)


def progressive_self_kd():
    objective = combine(ps=objectives.progressive_self_kd(tiny.DATA, steps=10))
    return Case(distilled(objective, teacher=teachers.none()), fixed=nothing)


def virtual_teacher():
    virtual = term(losses.virtual_teacher_kl, "student/logits", "batch/label")
    return Case(distilled(combine(ce=CE, tf=virtual), teacher=teachers.none()), fixed=nothing)


def adversarial():
    gan = objectives.adversarial("student/logits", "teacher/logits", discriminator=discriminators.mlp(5))
    return Case(distilled(combine(ce=CE, kd=KL, gan=gan)))


def cross_modal():
    student = wrappers.with_inputs(tiny.student, image="left")
    return Case(distilled(student=student), model=student, batch=with_views)


def quantized():
    student = wrappers.quantized(tiny.student, bits=2, bucket=8, seed=5, include=lambda path, x: True)
    return Case(distilled(student=student), model=student)


def learned_codebook():
    trained = tiny.student.init(jax.random.key(4), tiny.batch(1))
    student = wrappers.learned_codebook(tiny.student, trained, bits=2, bucket=8, include=lambda path, x: True)

    def dense(state):
        return jaxkd.Variables(wrappers.quantize_with(trained.params, state.student.params, bucket=8))

    return Case(distilled(student=student), pick=dense)


def few_sample():
    model = adapters.linen(networks.Convolutional(), taps={"first": "Conv_0"})
    taught = model.init(jax.random.key(6), tiny.batch(1))
    layers = {"first": schemes.transfer.FewSampleLayer("first", "first", "Conv_0/kernel", affine=True)}
    kd = schemes.few_sample(model, teachers.frozen(model, taught), layers, steps=4, ridge=1e-3)
    return Case(kd, adapters.linen(networks.Convolutional()))


def online():
    kd = schemes.online(tiny.student, normed, BOTH, teacher_objective=combine(ce=CE), optimizer=SGD)
    return Case(kd, pick=member("student"), fixed=nothing)


RELATION = combine(kl=KL, rkd=term(losses.distance_relation, "student/vector", "teacher/vector"))


def mutual_with_relations():
    students = {"a": tiny.student, "b": tiny.teacher_model}
    kd = schemes.mutual(students, own=combine(ce=CE), mutual=RELATION, optimizer=SGD)
    return Case(kd, pick=member("a"), fixed=nothing)


def mutual_copies():
    kd = schemes.mutual(normed, peers=3, own=combine(ce=CE), mutual=combine(kl=KL), optimizer=CLIPPED)
    return Case(kd, normed, pick=member("1"), fixed=nothing)


def diverse_peers():
    kd = schemes.diverse_peers(normed, normed, peers=2, feature="vector", own=CE, optimizer=SGD)
    return Case(kd, normed, pick=member("leader"), fixed=nothing)


def branches():
    head = adapters.plain(
        lambda key, f: 0.5 * jax.random.normal(key, (f.shape[-1], tiny.CLASSES)),
        lambda w, f: f.mean(axis=(1, 2)) @ w,
        inputs="feature",
    )
    exits = {"one": wrappers.Exit("map", head), "two": wrappers.Exit("map", head)}
    kd = schemes.branches(tiny.student, exits, feature="map", own=CE, taught=KL, optimizer=SGD)
    return Case(kd, pick=member("model"), fixed=nothing)


def collaborative():
    students = {"a": tiny.student, "b": wrappers.with_inputs(normed, image="view")}
    kd = schemes.collaborative(students, own=CE, taught=KL, optimizer=SGD)
    return Case(kd, pick=member("a"), fixed=nothing, batch=with_views)


def noise(size, seed=0):
    """Returns a batch without images."""
    rng = np.random.default_rng(seed)
    return {
        "noise": rng.normal(size=(size, 4)).astype(np.float32),
        "label": rng.integers(0, tiny.CLASSES, size).astype(np.int32),
        "index": rng.permutation(tiny.DATA)[:size].astype(np.int32),
    }


def _data_free(synthesis):
    model = wrappers.with_batch_stat_distance(
        adapters.linen(networks.Convolutional(norm=True), taps={"last": "Conv_1"})
    )
    taught = model.init(jax.random.key(6), tiny.batch(1))
    teacher = teachers.frozen(model, taught)
    generator = adapters.plain(
        lambda key, z: jax.random.normal(key, (4, 32)),
        lambda w, z: {"image": jnp.tanh(z @ w).reshape(-1, 4, 4, 2)},
        inputs="noise",
    )
    kd = schemes.data_free(distilled(combine(kd=KL), teacher=teacher), synthesis(teacher, generator))
    return Case(kd, batch=noise, seen=tiny.batch)


def data_free_generator():
    return _data_free(lambda t, g: schemes.synthesis.dafl(t, g, optax.sgd(0.01), feature="last", statistics=1.0))


def data_free_inversion():
    options = {"iterations": 2, "slots": 2, "jitter": 1, "student": tiny.student, "competition": 1.0}
    return _data_free(lambda t, g: schemes.synthesis.inversion(t, (4, 4, 2), optax.sgd(0.01), **options))


def data_free_contrastive():
    options = {"feature_names": ["last"], "iterations": 2, "slots": 2, "memory": 16, "embedding": 4}
    return _data_free(lambda t, g: schemes.synthesis.cmi(t, g, optax.sgd(0.01), **options))


def moved(student, batch, *, keys):
    """Returns images that depend on the student, the key and the image."""
    noise = jax.vmap(lambda key: jax.random.normal(key, (4, 4, 2)))(keys)
    return {"image": 0.5 * jnp.asarray(batch["image"]) + noise * jnp.mean(jnp.abs(student.params["first"]))}


def on_policy():
    return Case(schemes.on_policy(distilled(), moved, fraction=0.4))


def walked(student, teacher, carried, batch, *, keys):
    """Returns images of a random walk, which the student has a part in, and where it is afterwards."""
    noise = jax.vmap(lambda key: jax.random.normal(key, (4, 4, 2)))(keys)
    image = 0.5 * carried["image"] + noise * jnp.mean(jnp.abs(student.params["first"]))
    return {"image": image, "label": carried["steps"] % tiny.CLASSES}, {"image": image, "steps": carried["steps"] + 1}


def interactive():
    def begin(keys):
        images = jax.vmap(lambda key: jax.random.normal(key, (4, 4, 2)))(keys)
        return {"image": images, "steps": jnp.zeros(len(keys), jnp.int32)}

    return Case(schemes.sequences.interactive(distilled(), begin, walked))


def several_updates():
    return Case(jaxkd.distillers.repeated(distilled(), times=2))


def replay():
    options = {"validation": tiny.batch(8, 5), "eval_every": 2, "capacity": 8, "fraction": 1.0, "rise": 0.0}
    return Case(schemes.sequences.replay(distilled(), moved, steps=2, **options))


def sequence_level():
    return Case(schemes.sequence_level(distilled(), moved, examples=tiny.DATA))


TASKS = ([0, 1], [2])


def task_after_task(steps):
    """Returns a function of batches; the seed selects the task."""

    def batch(size, seed=0):
        made = tiny.batch(size, seed)
        task = 0 if seed < steps[0] else 1
        return {**made, "label": np.asarray(TASKS[task], np.int32)[made["label"] % len(TASKS[task])]}

    return batch


def in_turn(steps):
    return data.Tasks([loader(task_after_task((4 * i, 0))) for i in (1, 0)], steps)


def learning_without_forgetting():
    kd = schemes.learning_without_forgetting(tiny.student, tasks=TASKS, steps=(3, 9), optimizer=SGD)
    return Case(kd, fixed=nothing, batch=task_after_task((3, 9)), train=lambda: in_turn((3, 9)))


def retrospection():
    kd = schemes.retrospection(
        tiny.student, tiny.teacher_model, tasks=TASKS, steps=(2, 9), expert_steps=2, optimizer=SGD
    )
    return Case(kd, fixed=nothing, batch=task_after_task((2, 9)), train=lambda: in_turn((2, 9)))


CASES = {
    case.__name__: case
    for case in (
        offline,
        online,
        mutual_with_relations,
        mutual_copies,
        diverse_peers,
        branches,
        collaborative,
        staged,
        born_again,
        assistants,
        mean_teacher_with_crd,
        several_teachers,
        knowledge_flow,
        be_your_own_teacher,
        class_wise,
        two_views,
        progressive_self_kd,
        virtual_teacher,
        adversarial,
        cross_modal,
        quantized,
        learned_codebook,
        few_sample,
        data_free_generator,
        data_free_inversion,
        data_free_contrastive,
        on_policy,
        interactive,
        several_updates,
        replay,
        sequence_level,
        learning_without_forgetting,
        retrospection,
    )
}
