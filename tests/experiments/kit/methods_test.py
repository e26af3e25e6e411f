"""The rows of the CIFAR-100 benchmark: weights, schedules and stages as published, for every pair of the tables."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxkd
from experiments.cifar100 import problem, published
from experiments.kit import methods, taps
from experiments.kit.teachers import Trained
from jaxkd import Context
from tests import references
from tests.experiments import cifar100_tiny as tiny

METHODS = tuple(methods.METHODS)
PAIRS = [pair.split(":") for pair in published.PAIRS]
OTHERS = [name for name in METHODS if name not in ("student", "kd", "rkd", "at", "ab", "ft", "crd")]  # others run these


def own_margin(tap):
    """Of as many channels as the teacher has there."""
    return jnp.full(problem.PROBLEM.shapes(tiny.TEACHER)[tap][-1], -0.5, jnp.float32)


# Each row trains.


def batch(examples=8):
    random = np.random.default_rng(3)
    image = random.normal(size=(examples, tiny.SIZE, tiny.SIZE, 3)).astype(np.float32)
    return {"image": image, "label": np.arange(examples) % 4, "row": np.arange(examples, dtype=np.int32)}


def steps_of(method, count):
    """The state, and what each of the first steps reports."""
    student = problem.PROBLEM.model(tiny.STUDENT, method.student_taps(tiny.TEACHER, tiny.STUDENT))
    teacher = problem.PROBLEM.model(tiny.TEACHER, method.teacher_taps(tiny.TEACHER, tiny.STUDENT))
    frozen = jaxkd.teachers.frozen(teacher, tiny.variables())
    kd = methods.build(method, tiny.setting(steps=8, margin=own_margin), student, frozen, tiny.PROBLEM)
    state, step, found = kd.init(jax.random.key(0), batch()), jax.jit(kd.step), []
    for _ in range(count):
        state, told = step(state, batch())
        found.append(jaxkd.metrics.compute(told))
    return state, found


@pytest.mark.slow
def test_every_term_of_every_row_counts_in_a_step():
    """Of the rows that are not run as cells elsewhere; together, which is one program to compile."""
    rows = {name: methods.METHODS[name] for name in OTHERS if name != "fsp"}

    def all_taps(teacher, student):
        both = [row.taps(teacher, student) for row in rows.values()]
        return tuple(tuple(dict.fromkeys(itertools.chain(*side))) for side in zip(*both, strict=True))

    method = methods.Method(
        "all", lambda of, w: jaxkd.combine(**{name: row.objective(of) for name, row in rows.items()}), all_taps
    )
    state, (_, found) = steps_of(method, 2)
    assert tiny.moved(state.student.params)
    loss = found.pop("loss")
    weights = {term.removesuffix("/weight"): value for term, value in found.items() if term.endswith("/weight")}
    assert set(weights) == {term for term in found if not term.endswith("/weight")}
    assert {term.split("/")[0] for term in weights} == set(rows)
    assert all(math.isfinite(value) and value != 0 for value in found.values()), found  # a warm-up is over
    assert loss == pytest.approx(sum(found[term] * weight for term, weight in weights.items()), rel=1e-4)


@pytest.mark.slow
def test_a_flow_first_and_then_the_task():
    state, (first, then) = steps_of(methods.METHODS["fsp"], 2)
    assert (first["stage"], then["stage"]) == (0, 1) and tiny.moved(state.student.params)
    flows = ["fsp/stem-stage1", "fsp/stage1-stage2", "fsp/stage2-stage3"]
    assert all(first[flow] > 0 and math.isnan(then[flow]) for flow in flows)
    assert first["loss"] == pytest.approx(sum(first[flow] for flow in flows), rel=1e-4)
    assert math.isnan(first["ce"]) and then["loss"] == pytest.approx(then["ce"], rel=1e-5)


# Every published pair.


@functools.cache
def outputs(name, taps):
    """Shapes of what a network gives for a batch of four."""
    shapes = problem.PROBLEM.shapes(name)
    return {tap: jax.ShapeDtypeStruct((4, *shapes[tap]), jnp.float32) for tap in taps} | {
        "logits": jax.ShapeDtypeStruct((4, problem.PROBLEM.classes), jnp.float32)
    }


def traced(objective, name, of):
    """The metrics of an objective, from the points alone that its row is said to read."""
    method = methods.METHODS[name]
    integers = jax.ShapeDtypeStruct((4,), jnp.int32)
    context = Context(
        outputs(of.student, method.student_taps(of.teacher, of.student)),
        outputs(of.teacher, method.teacher_taps(of.teacher, of.student)),
        {"label": integers, "row": integers},
        jax.ShapeDtypeStruct((), jnp.int32),
    )

    def trained(context):
        made = objective.init(jax.random.key(0), context)
        return objective.apply(made.params, made.state, context, jax.random.key(0))

    out = jax.eval_shape(trained, context)
    assert out.value.shape == ()
    return {term for term in out.metrics if not term.endswith("/weight")}


@pytest.mark.parametrize(
    ("teacher", "student"),
    [pytest.param(*pair, marks=pytest.mark.slow if i else [], id=":".join(pair)) for i, pair in enumerate(PAIRS)],
)
def test_every_row_is_defined_for_every_published_pair(teacher, student):
    of = tiny.setting(
        teacher, student, margin=lambda tap: jnp.zeros(problem.PROBLEM.shapes(teacher)[tap][-1:], jnp.float32)
    )
    stages = taps.stages(student)
    each = {name: {f"{name}/{stage}" for stage in stages} for name in ("at", "vid", "nst", "ofd", "ab")}
    maps = ["stem", *stages]
    initial = {
        "ab": each["ab"],
        "ft": {"ft/paraphraser"},
        "fsp": {f"fsp/{a}-{b}" for a, b in itertools.pairwise(maps)},
    }
    own = {
        **{"student": set(), "kd": {"kd"}, "fitnet": {"hint"}, "at": each["at"], "sp": {"sp"}, "cc": {"cc"}},
        **{"vid": each["vid"], "rkd": {"distance", "angle"}, "pkt": {"pkt"}, "ab": set(), "ft": {"ft"}, "fsp": set()},
        **{"nst": each["nst"], "crd": {"crd"}, "crd_kd": {"crd", "kd"}, "dkd": {"dkd"}, "dist": {"dist"}},
        **{"logit_std": {"kd"}, "ofd": each["ofd"], "review": {"review"}},
    }
    assert own.keys() == set(METHODS)
    for name, method in methods.METHODS.items():
        if methods.defined(name, teacher, student, problem.PROBLEM):
            assert traced(method.objective(of), name, of) == {"ce"} | own[name], name
            if method.initial is not None:
                assert traced(method.initial_objective(of), name, of) == initial[name], name
            else:
                assert name not in initial


@pytest.mark.slow
def test_fsp_alone_is_undefined_and_only_for_pairs_without_a_published_number():
    undefined = {
        (pair, name)
        for pair in published.PAIRS
        for name in METHODS
        if not methods.defined(name, *pair.split(":"), problem.PROBLEM)
    }
    assert undefined == {(pair, "fsp") for pair in published.PAIRS if published.value(pair, "fsp") is None}
    assert len(undefined) == 7
    assert {name for name in METHODS if not methods.defined(name, "vgg13", "resnet8", problem.PROBLEM)} == {
        "at", "vid", "ab", "fsp", "nst", "ofd", "review"
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("teacher", dict.fromkeys(teacher for teacher, _ in PAIRS))
def test_every_published_teacher_has_ofd_margins(teacher):
    variables = problem.PROBLEM.parameters(teacher)
    for stage in taps.stages(teacher):
        tap = f"{stage}_preact"
        trained = functools.partial(Trained, teacher, test_logits=None, directory=None)
        margin = jax.eval_shape(lambda v, tap=tap, t=trained: t(variables=v).margin(tap), variables)
        assert margin.shape == problem.PROBLEM.shapes(teacher)[tap][-1:]


# The published weights, from the common protocol: total = γ·CE + α·KD + β·method.

EXAMPLES, CLASSES, STAGES = 5, 12, ("stage1", "stage2", "stage3")
WIDTHS = {"stem": (8, 4), "stage1": (8, 4), "stage2": (4, 5), "stage3": (2, 6)}


def context(step):
    """Small random outputs of two networks of three stages."""
    random = np.random.default_rng(1)

    def network():
        maps = {name: random.normal(size=(EXAMPLES, size, size, c)) for name, (size, c) in WIDTHS.items()}
        both = {f"{stage}_preact": maps[stage] for stage in STAGES} | {
            name: np.maximum(x, 0) for name, x in maps.items()
        }
        vectors = {"pooled": random.normal(size=(EXAMPLES, 6)), "logits": 3 * random.normal(size=(EXAMPLES, CLASSES))}
        return {name: x.astype(np.float32) for name, x in {**both, **vectors}.items()}

    rows = {"label": random.integers(0, CLASSES, EXAMPLES), "row": np.arange(EXAMPLES)}
    return Context(network(), network(), {name: x.astype(np.int32) for name, x in rows.items()}, np.int32(step))


def margin(tap):
    return -jnp.linspace(0.1, 1.0, WIDTHS[tap.removesuffix("_preact")][1])


@functools.cache
def totals(step):
    """Of every row the total as an evaluation has it, the terms, the gradient, and what it has learned."""
    of = tiny.setting(margin=margin)
    rows = {name: method.objective(of) for name, method in methods.METHODS.items()}
    rows |= {f"{name}, first": m.initial_objective(of) for name, m in methods.METHODS.items() if m.initial is not None}
    rows |= {
        f"dkd, {pair}": methods.METHODS["dkd"].objective(tiny.setting(*pair.split(":"))) for pair in published.PAIRS[:7]
    }
    rows |= {
        "crd of its own": jaxkd.objectives.crd("student/pooled", "teacher/pooled", of.labels, index_path="batch/row")
    }
    given = context(step)
    made = jax.jit(lambda: {name: row.init(jax.random.key(2), given) for name, row in rows.items()})()
    made["crd of its own"] = jaxkd.ObjectiveVars(made["crd"].params["crd"], made["crd"].state["crd"])

    @jax.jit
    def evaluated(made, given):
        def total(student, name):
            out = rows[name].apply(*made[name], given._replace(student=student), None)
            return out.value, out.metrics

        return {name: jax.value_and_grad(total, has_aux=True)(given.student, name) for name in rows}

    found = evaluated(made, given)
    value = {name: float(value) for name, ((value, _), _) in found.items()}
    terms = {name: jaxkd.metrics.compute(told) for name, ((_, told), _) in found.items()}
    gradients = {name: gradient for name, (_, gradient) in found.items()}
    return value, terms, jax.tree.map(np.asarray, made), given, gradients


def expected(step=239):
    """The totals once more, in NumPy; of what convolutions have learned, from the unweighted terms."""
    _, terms, made, given, _ = totals(step)
    s, t, label = given.student, given.teacher, given.batch["label"]
    ce = references.cross_entropy(s["logits"], label).mean()
    soft = references.soft_target_kl(s["logits"], t["logits"], temperature=4.0).mean()

    def stages(loss):
        return [loss(s[stage], t[stage]).mean() for stage in STAGES]

    def embedded(row, side, feature):
        own = made[row].params["cc"][side]
        return feature @ own["kernel"] + own["bias"]

    def connected(row, name, stage):
        own = made[row].params[name][stage]
        return s[f"{stage}_preact"] @ own["kernel"] / math.sqrt(1 + 1e-5) * own["norm"]["scale"] + own["norm"]["bias"]

    def predicted(stage):
        own = made["vid"].params["vid"][stage]
        x = s[stage]
        for i, layer in enumerate(("first", "second", "third")):
            x = (np.maximum(x, 0) if i else x) @ own["mean"][layer]["kernel"]
        return x, np.log1p(np.exp(own["raw_variance"])) + 1e-5

    vid = [references.gaussian_nll(predicted(k)[0], t[k], predicted(k)[1]).mean() for k in STAGES]
    ofd = [
        references.overhaul(connected("ofd", "ofd", k), t[f"{k}_preact"], np.asarray(margin(k))).mean() for k in STAGES
    ]
    ab = [references.activation_boundary(connected("ab, first", "ab", k), t[f"{k}_preact"]).mean() for k in STAGES]
    maps = ["stem", *STAGES]
    flows = [references.solution_flow((s[a], s[b]), (t[a], t[b])).mean() for a, b in itertools.pairwise(maps)]
    embeddings = [embedded("cc", side, of["pooled"]) for side, of in (("student", s), ("teacher", t))]
    standardized = [references.standardize_logits(of["logits"]) for of in (s, t)]
    crd = terms["crd of its own"][""]

    def dkd(beta):
        return references.decoupled_kd(s["logits"], t["logits"], label, alpha=1.0, beta=beta, temperature=4.0).mean()

    pooled = s["pooled"], t["pooled"]
    return {
        "student": ce,
        "kd": 0.1 * ce + 0.9 * soft,
        "fitnet": ce + 100 * references.hint_mse(s["stage2"], t["stage2"]).mean(),
        "at": ce + 1000 * sum(stages(references.attention_transfer)),
        "sp": ce + 3000 * references.similarity_preserving(s["stage3"], t["stage3"]).mean(),
        "cc": ce + 0.02 * references.consecutive_correlation(*embeddings).mean(),
        "vid": ce + sum(vid),
        "rkd": ce + 25 * references.distance_relation(*pooled).mean() + 50 * references.angle_relation(*pooled).mean(),
        "pkt": ce + 3e4 * references.probabilistic_transfer(*pooled).mean(),
        "ab": ce,
        "ab, first": sum(3e-3 * scale * value for scale, value in zip((1 / 4, 1 / 2, 1), ab, strict=True)),
        "ft": ce + 200 * terms["ft"]["ft"],
        "ft, first": terms["ft, first"]["ft/paraphraser"],
        "fsp": ce,
        "fsp, first": sum(flows),
        "nst": ce + 50 * sum(stages(references.neuron_selectivity)),
        "crd": ce + 0.8 * crd,
        "crd_kd": ce + soft + 0.8 * terms["crd_kd"]["crd"],
        "dkd": ce + dkd(2.0),
        "dist": ce + 2 * references.dist(s["logits"], t["logits"], beta=1.0, gamma=1.0, temperature=4.0).mean(),
        "logit_std": 0.1 * ce + 9 * references.soft_target_kl(*standardized, temperature=2.0).mean(),
        "ofd": ce + sum(1e-3 * scale * value for scale, value in zip((1 / 4, 1 / 2, 1), ofd, strict=True)),
        "review": ce + 1.0 * terms["review"]["review"],
        **{
            f"dkd, {pair}": ce + dkd(beta)
            for pair, beta in zip(published.PAIRS[:7], (6, 6, 2, 2, 2, 8, 6), strict=True)
        },
    }


def test_the_table_has_the_weights_of_the_common_protocol():
    """Quick: what is declared. The slow test computes the totals."""
    of = methods.Setting()
    weights = {name: {**method.weigh(of)} for name, method in methods.METHODS.items()}
    assert weights["kd"] == {"ce": 0.1, "kd": 0.9} and weights["crd_kd"] == {"ce": 1.0, "kd": 1.0, "crd": 0.8}
    single = {
        **{"fitnet": 100, "at": 1000, "sp": 3000, "cc": 0.02, "pkt": 3e4, "ab": 3e-3, "ft": 200, "nst": 50, "crd": 0.8},
        **{"dkd": 1, "dist": 2, "ofd": 1e-3},
    }
    for name, value in single.items():
        assert sorted(weights[name].values()) == sorted([1.0, value]), name
    own = of._replace(weights={"kd": 4.0, "ce": 1.0})
    assert methods.METHODS["kd"].weigh(own) == {"ce": 1.0, "kd": 4.0}


@pytest.mark.slow
def test_the_weights_are_those_of_the_common_protocol():
    found, ours = totals(239)[0], expected()
    assert set(METHODS) <= ours.keys() == found.keys() - {"crd of its own"}
    for name, value in ours.items():
        np.testing.assert_allclose(found[name], value, rtol=2e-4, err_msg=name)
    assert len({round(value, 4) for name, value in found.items() if name in METHODS}) == len(METHODS) - 2  # ab, fsp: CE


@pytest.mark.slow
def test_a_gradient_reaches_every_point_that_a_row_reads_and_no_other():
    found = {name: {tap for tap, x in gradient.items() if np.any(x)} for name, gradient in totals(239)[-1].items()}
    for name, method in methods.METHODS.items():
        taps = set(method.student_taps(tiny.TEACHER, tiny.STUDENT))
        if method.initial is not None:
            assert found[f"{name}, first"] == (taps if method.train_student else set()), name
        assert found[name] == {"logits"} | (set() if name in ("ab", "fsp") else taps), name
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(totals(239)[-1]))


@pytest.mark.parametrize(("step", "share"), [(0, 0.0), (5, 0.25), (10, 0.5), (20, 1.0), (21, 1.0), (239, 1.0)])
def test_dkd_and_review_warm_up_over_the_first_20_of_240_epochs(step, share):
    for pair, full, name in [("resnet32x4:resnet8x4", 1.0, "dkd"), ("resnet32x4:shufflenet_v2", 8.0, "review")]:
        weight = _weight_at(pair, name)
        assert float(weight(step)) == pytest.approx(full * share)


def _weight_at(pair, name):
    """The weight that a term reports at a step."""
    row, given = methods.METHODS[name].objective(tiny.setting(*pair.split(":"))), context(0)
    made = row.init(jax.random.key(0), given)
    return lambda step: (
        row.apply(made.params, made.state, given._replace(step=step), None).metrics[f"{name}/weight"].sum
    )


def test_the_weights_that_depend_on_the_pair():
    beta = {pair: methods.dkd_beta(*pair.split(":")) for pair in published.PAIRS}
    assert beta == dict(zip(published.PAIRS, (6, 6, 2, 2, 2, 8, 6, 6, 8, 8, 8, 8, 8), strict=True))
    review = {pair: methods.review_weight(*pair.split(":")) for pair in published.PAIRS}
    known = {
        **{"wrn_40_2:wrn_16_2": 5, "wrn_40_2:wrn_40_1": 5, "resnet32x4:resnet8x4": 5, "resnet32x4:shufflenet_v1": 5},
        **{
            "wrn_40_2:shufflenet_v1": 5,
            "resnet32x4:shufflenet_v2": 8,
            "resnet56:resnet20": 0.6,
            "resnet110:resnet32": 1,
        },
    }
    assert {pair: review[pair] for pair in known} == known


@pytest.mark.parametrize(
    ("pair", "weights"), [("vgg13:vgg8", (1 / 8, 1 / 4, 1 / 2, 1)), (tiny.PAIR, (1 / 4, 1 / 2, 1))]
)
def test_deeper_stages_weigh_more(pair, weights):
    teacher, student = pair.split(":")
    of = tiny.setting(teacher, student, margin=lambda tap: jnp.zeros(2))
    feature = {f"stage{i}_preact": jnp.zeros((2, 2, 2, 2)) for i in range(1, 6)}
    given = Context({**feature, "logits": jnp.zeros((2, 3))}, feature, {"label": jnp.zeros(2, jnp.int32)}, 0)
    rows = {"ofd": methods.METHODS["ofd"].objective(of), "ab": methods.METHODS["ab"].initial_objective(of)}
    for name, scale in (("ofd", 1e-3), ("ab", 3e-3)):
        row = rows[name]
        made = row.init(jax.random.key(0), given)
        found = row.apply(made.params, made.state, given, None).metrics
        reported = [float(found[f"{name}/stage{i + 1}/weight"].sum) for i in range(len(weights))]
        np.testing.assert_allclose(reported, scale * np.array(weights), rtol=1e-6)
        assert f"{name}/stage{len(weights) + 1}" not in found


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ab, first", "ofd"])
def test_a_smaller_map_of_the_student_is_enlarged(name):
    """The same as a map that was enlarged before: what is compared neuron by neuron needs as many of them."""
    of, given = tiny.setting(margin=margin), context(239)
    row = methods.METHODS["ofd"].objective(of) if name == "ofd" else methods.METHODS["ab"].initial_objective(of)
    doubled = {f"{stage}_preact": np.kron(given.student[f"{stage}_preact"], np.ones((1, 2, 2, 1))) for stage in STAGES}
    teacher = {f"{stage}_preact": given.teacher[f"{stage}_preact"].repeat(2, 1).repeat(2, 2) for stage in STAGES}
    small = given._replace(teacher={**given.teacher, **teacher})
    large = small._replace(student={**given.student, **{k: x.astype(np.float32) for k, x in doubled.items()}})
    made = row.init(jax.random.key(0), small)
    values = [jax.jit(row.apply)(*made, one, jax.random.key(1)).value for one in (small, large)]
    np.testing.assert_allclose(*values, rtol=1e-6)
    assert float(values[0]) > 0
