"""Every scheme on one problem, at equal cost: ``python -m experiments.schemes``.

===========  ==================================================================================================
`config`     the settings, from which the command line is made
`problem`    the digits or CIFAR-100, with networks of several sizes; `networks` has those of the digits
`method`     what a method is: a training made for a problem; the student alone; offline distillation
`methods`    the methods of each family of schemes, and the order of the table
`cell`       one training of all seeds, run once
`teachers`   the networks that methods begin with, and the search for a chain of assistants
`plan`       FLOPs of the compiled steps, and time beside the student alone
`report`     results.json, the table, report.md; `plots` the figures
`main`       the command
===========  ==================================================================================================
"""
