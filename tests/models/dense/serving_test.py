"""The script of docs/guides/dense.md serves a segmenter with JAX alone."""

import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import adapters, data, models, weights

PAGE = pathlib.Path(__file__).parents[3] / "docs" / "guides" / "dense.md"
SCRIPT = re.search(r"^<!-- segment\.py -->\n```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.S | re.M)

# Runs a script with JAX and its dependencies only: other imports fail.
ONLY_JAX = """
import runpy, sys
for name in ("jaxkd", "flax", "optax", "orbax", "safetensors"):
    sys.modules[name] = None
runpy.run_path("segment.py", run_name="__main__")
"""


def test_the_script_has_ten_lines_at_most():
    assert len([line for line in SCRIPT[1].splitlines() if line]) <= 10


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Segmenter", "ENet"])
def test_a_served_segmenter_equals_the_trained_one(name, tmp_path):
    options = {"widths": (4, 8), "channels": 4} if name == "Segmenter" else {"widths": (4, 8, 8)}
    module = getattr(models, name)(num_classes=4, **options)
    model = adapters.linen(module, outputs=lambda x: {"classes": jnp.argmax(x["logits"], -1).astype(jnp.uint8)})
    images = np.random.default_rng(0).integers(0, 256, (3, 21, 30, 3)).astype(np.uint8)

    def normalize(batch):
        return data.normalize(batch, mean=(0.4, 0.5, 0.6), std=(0.25,) * 3)

    batch = normalize({"image": jnp.asarray(images)})
    variables = model.init(jax.random.key(0), batch)
    image = {"image": jax.ShapeDtypeStruct((1, 21, 30, 3), jnp.uint8)}
    weights.save_program(
        tmp_path / "segmenter.jax", model, variables, image, preprocess=normalize, output_names=("classes",)
    )
    np.save(tmp_path / "images.npy", images)
    (tmp_path / "segment.py").write_text(SCRIPT[1])
    command = [sys.executable, "-W", "error", "-c", ONLY_JAX]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / "classes.npy")
    direct = jax.jit(lambda v, b: model.apply(v, b, key=None, train=False)[0]["classes"])(variables, batch)
    assert found.shape == (3, 21, 30) and len(np.unique(found)) > 1
    assert (found == direct).mean() > 0.999
