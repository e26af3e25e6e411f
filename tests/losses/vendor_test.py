"""The folder `losses` can be vendored: copied into another project, under another name, it works without jaxkd."""

import os
import pathlib
import shutil
import subprocess
import sys

from jaxkd import losses

SCRIPT = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("jaxkd", "jaxtyping"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
import jax.numpy as jnp
from myproject._vendor import losses

assert not {"jaxkd", "jaxtyping", "optax"} & {name.split(".")[0] for name in sys.modules}, "losses needs only jax"
value = losses.soft_target_kl(jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 3.0]]), temperature=2.0)
assert abs(value[0] - 1.6313) < 1e-4, value
assert all(callable(getattr(losses, name)) for name in losses.__all__)
"""


def test_a_vendored_copy_needs_only_jax(tmp_path):
    source = pathlib.Path(losses.__file__).parent
    shutil.copytree(source, tmp_path / "myproject" / "_vendor" / "losses", ignore=shutil.ignore_patterns("__pycache__"))
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "XLA_FLAGS")}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
