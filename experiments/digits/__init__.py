"""Digits, few of them labeled: ``python -m experiments.digits``.

`config` has the settings and methods, `problem` the data and networks, `report` the table, the
page and the plot, `main` the command, `sweep` how the settings were chosen. Everything else is in `experiments.kit`.
"""
