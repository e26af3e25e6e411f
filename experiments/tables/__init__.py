"""Tables of pages that are made from committed results: ``python -m experiments.tables``.

A page has a block for each table, which the command fills and ``--check`` compares::

    <!-- table: task results=classification/deit columns=accuracy,gain -->

    <!-- end -->

`pages` finds and fills blocks, `committed` reads results, `cells` writes numbers. The tables by name: `fields` (one
experiment), `overview` (docs/results.md), `speed` (benchmarks), `choice` (docs/which-method.md, with `methods.toml`).
"""
