"""Models by name: spellings, options, taps and margins."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxkd
from jaxkd import adapters, losses, models
from jaxkd.types import Context


@pytest.mark.parametrize("name", models.names())
def test_options_reach_the_model(name):
    model = models.create(name, num_classes=7, dtype=jnp.bfloat16)
    assert (model.num_classes, model.dtype) == (7, jnp.bfloat16)
    assert models.create(name, num_classes=7).dtype is None


def test_names_are_unique_and_lowercase():
    assert len(models.names()) == len(set(models.names()))
    assert all(name == name.lower() for name in models.names())


@pytest.mark.parametrize("call", [lambda name: models.create(name, 10), models.taps, models.margin_norms])
def test_unknown_name_raises_with_the_known_names(call):
    with pytest.raises(ValueError, match=r"name: expected one of \['resnet8', .*'shufflenet_v2'\], got 'ResNet9'"):
        call("ResNet9")


@pytest.mark.parametrize(
    ("written", "name"),
    [("ResNet32x4", "resnet32x4"), ("ShuffleNetV1", "shufflenet_v1"), ("WRN_16_2", "wrn_16_2"), ("VGG-8", "vgg8")],
)
def test_spellings_of_the_literature_are_accepted(written, name):
    assert models.canonical(written) == name and models.taps(written) == models.taps(name)
    assert all(models.canonical(other) == other for other in models.names())


def test_returned_tables_are_copies():
    for table in (models.taps, models.margin_norms):
        table("resnet8").clear()
        assert table("resnet8")["stage1_preact"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, tap",
    [
        ("resnet8", "stage3"),
        pytest.param("wrn_16_1", "stage3", marks=pytest.mark.slow),
        pytest.param("vgg8", "stage2", marks=pytest.mark.slow),
    ],
)
def test_overhaul_accepts_taps_and_margin_norms_of_the_zoo(name, tap):
    student = adapters.linen(models.create("resnet8", 10), taps={"f": models.taps("resnet8")["stage3_preact"]})
    teacher = adapters.linen(models.create(name, 10), taps={"f": models.taps(name)[f"{tap}_preact"]})
    batch = {"image": jax.random.normal(jax.random.key(0), (2, 8, 8, 3))}
    variables = [model.init(jax.random.key(1), batch) for model in (student, teacher)]
    norm = variables[1].params
    for part in models.margin_norms(name)[f"{tap}_preact"].split("/"):
        norm = norm[part]
    margin = losses.overhaul_margin(norm["bias"], norm["scale"])
    # Bias 0 and scale 1 are a standard normal distribution, whose negative half has this mean.
    np.testing.assert_allclose(margin, np.full(margin.shape, -np.sqrt(2 / np.pi)), rtol=1e-5)

    outputs = [
        model.apply(v, batch, key=None, train=False)[0] for model, v in zip((student, teacher), variables, strict=True)
    ]
    context = Context(*outputs, batch, 0)
    objective = jaxkd.objectives.overhaul_connector("student/f", "teacher/f", margin)
    params, state = objective.init(jax.random.key(2), context)
    value = objective.apply(params, state, context, jax.random.key(3)).value
    assert np.isfinite(value) and value > 0
