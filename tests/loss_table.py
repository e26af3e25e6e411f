"""The table of losses: one row per loss, which `tests/losses` holds to the properties that all losses share.

A new loss needs a row in the file of `tests/loss_rows` with the name of its own file, and a reference of its name in
`tests/references`; `table_test.py` fails without them. The row says how inputs are made, which golden values and values
derived by hand there are, and which changes of the input leave the loss unchanged. Every other property is the same for
all losses and is tested for every row.
"""

import importlib
import pathlib
from collections.abc import Iterable
from typing import Any

import pytest

from tests.loss_row import Row

FILES = sorted(path.stem for path in (pathlib.Path(__file__).parent / "loss_rows").glob("[a-z]*.py"))

ROWS: tuple[Row, ...] = tuple(row for file in FILES for row in importlib.import_module(f"tests.loss_rows.{file}").ROWS)

#: public functions of `jaxkd.losses` that are not losses, and the file that tests each
HELPERS = {
    "best_logits": "tests/losses/ensembles_test.py",
    "channel_importance": "tests/losses/features_test.py",
    "combined_logits": "tests/losses/ensembles_test.py",
    "imitation_mask": "tests/losses/dense_test.py",
    "linear_cross_entropy_and_kl": "tests/losses/known_words_test.py",
    "match_size": "tests/losses/features_test.py",
    "min_logits": "tests/losses/ensembles_test.py",
    "reverse_gradient": "tests/losses/gradients_test.py",
    "singular_directions": "tests/losses/singular_vectors_test.py",
}

BY_NAME = {row.name: row for row in ROWS}
PER_EXAMPLE = tuple(row for row in ROWS if row.per_example)
RELATIONAL = tuple(row for row in ROWS if row.relational)


def each(rows: Iterable[Row] = ROWS) -> Any:
    """Decorates a test that runs once per row.

    All tests of a row are one group for ``pytest --dist loadgroup``: they run in one worker and share the programs
    that `tests.loss_runs` compiles.
    """
    return pytest.mark.parametrize(
        "row", [pytest.param(row, id=row.name, marks=pytest.mark.xdist_group(row.name)) for row in rows]
    )
