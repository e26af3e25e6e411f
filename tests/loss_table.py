"""One row per loss: what `tests/losses` holds each of them to.

A new loss needs a row in the file of `tests/loss_rows` that goes with its own, and a reference of its name in
`tests/references`; `table_test.py` fails without them. The row says what inputs look like, where a golden value or one
derived by hand comes from, and which changes of the input the loss does not see. Everything else is the same for every
loss and is tested for every row.
"""

import importlib
import pathlib

from tests.loss_row import Row

FILES = sorted(path.stem for path in (pathlib.Path(__file__).parent / "loss_rows").glob("[a-z]*.py"))

ROWS: tuple[Row, ...] = tuple(row for file in FILES for row in importlib.import_module(f"tests.loss_rows.{file}").ROWS)

#: public functions of `jaxkd.losses` that are no losses, and the file that tests each
HELPERS = {
    "best_logits": "tests/losses/ensembles_test.py",
    "channel_importance": "tests/losses/features_test.py",
    "combined_logits": "tests/losses/ensembles_test.py",
    "imitation_mask": "tests/losses/dense_test.py",
    "min_logits": "tests/losses/ensembles_test.py",
    "reverse_gradient": "tests/losses/gradients_test.py",
}

BY_NAME = {row.name: row for row in ROWS}
PER_EXAMPLE = tuple(row for row in ROWS if row.per_example)
RELATIONAL = tuple(row for row in ROWS if row.relational)
