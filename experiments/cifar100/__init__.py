"""The CIFAR-100 distillation benchmark: ``python -m experiments.cifar100``.

============  ======================================================================================================
`problem`     the field: data, networks, recipe
`config`      the command line, its presets and its checks
`published`   the tables of the literature
`report`      Markdown, JSON and the terminal's table; `tables` makes their rows
`main`        the command
============  ======================================================================================================

Everything else is in `experiments.kit`.
"""
