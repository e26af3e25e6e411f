"""Plan of a distillation of language models on one pod: 7 B → 1 B at 10¹¹ tokens.

Run ``python -m benchmarks.scale --out benchmarks/results/scale.json``. No array is made: the networks exist as shapes,
and the step is lowered and compiled for simulated devices from shapes and shardings. ``--page docs/scale.md`` writes
the tables of the page from the results; a test compares them.

A compiled step of all layers would take an hour on a core. Every layer of a network has the same shapes, so that memory
and collectives are linear in the numbers of layers: three steps of few layers give the coefficients, and a fourth one,
with more layers of both, checks them.
"""
