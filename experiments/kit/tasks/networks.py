"""Networks that a task trains once, such as its teachers."""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from experiments.kit import files, training
from jaxkd import weights
from jaxkd.types import Distiller, Variables


def trained_once(
    path: pathlib.Path, kd: Distiller, train: Any, splits: Mapping[str, Any], *, steps: int, seed: int = 0
) -> Variables:
    """Returns a student's variables, which the first process that needs them trains and writes to a file."""
    with files.claim(path, wait=True):
        if not path.exists():
            every = max(steps // 20, 1)
            result = training.run(
                kd,
                train,
                splits,
                steps=steps,
                key=jax.random.key(seed),
                eval_every=every,
                directory=path.parent / path.stem,
                log_every=every,
                tensorboard=False,
            )
            weights.save_safetensors(path, result.state.student)
    like = jax.eval_shape(lambda key: kd.init(key, next(iter(train.batches()))).student, jax.random.key(0))
    return weights.fit_to(like, weights.load_safetensors(path))


def parameters(variables: Variables) -> int:
    """Returns the number of parameters."""
    return sum(x.size for x in jax.tree.leaves(variables.params))
