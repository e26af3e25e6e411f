"""The CIFAR-100 distillation benchmark: ``python -m experiments.cifar100``.

`problem` has the data, networks and recipe, `config` the command line with presets and checks, `published` the tables
of the literature, `report` the page and the table for the terminal, whose rows `tables` makes, and `main` the command.
Everything else is in `experiments.kit`.
"""
