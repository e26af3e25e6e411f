"""A file of losses can be copied out: alone in another folder, without jaxkd and jaxtyping, it still works."""

import importlib
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from tests.loss_runs import cast
from tests.loss_table import ROWS
from tests.losses.table_test import MODULES

SCRIPT = """
import importlib.abc, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("jaxkd", "jaxtyping"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
try:
    import jaxkd
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("jaxkd is not blocked")

import jax, numpy as np
import lifted

inputs = np.load("inputs.npz")
results = {}
for name in lifted.__all__:
    function = getattr(lifted, name)
    arrays = [inputs[f"{name}/{index}"] for index in range(9) if f"{name}/{index}" in inputs]
    if arrays:
        results[name] = jax.jit(function)(*arrays)
np.savez("results.npz", **results)
assert not {"jaxkd", "jaxtyping"} & {name.split(".")[0] for name in sys.modules}
"""


@pytest.mark.parametrize("name", MODULES)
def test_a_lifted_file_works(name, tmp_path):
    module = importlib.import_module(f"jaxkd.losses.{name}")
    rows = [row for row in ROWS if row.module == name and not row.call and not row.hyper[0]]
    shutil.copy(module.__file__, tmp_path / "lifted.py")
    inputs = {f"{row}/{i}": np.asarray(a) for row in rows for i, a in enumerate(cast(row.inputs(), np.float32))}
    np.savez(tmp_path / "inputs.npz", **inputs)
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "XLA_FLAGS")}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "results.npz") as results:
        assert set(results) == {row.name for row in rows}
        for row in rows:
            expected = row.reference(*(np.asarray(array) for array in cast(row.inputs(), np.float32)))
            np.testing.assert_allclose(results[row.name], expected, rtol=1e-4, atol=1e-6)
