"""Plan of a distillation of language models on one pod: 7 B → 1 B at 10¹¹ tokens.

Run ``python -m benchmarks.scale``, which writes the results and prints the tables that `experiments.tables` puts into
``docs/scale.md``. No array is made: the networks exist as shapes, and the step is lowered and compiled for simulated
devices from shapes and shardings.

Every layer of a network has the same shapes. Steps of few layers are compiled, which give the bytes of all layers, and
one with more layers checks them. Compiled steps that the results have already are not compiled again.
"""
