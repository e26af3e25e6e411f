"""Every scheme of distillation on one problem, at equal training cost: ``python -m experiments.schemes``.

===========  ==================================================================================================
`config`     every setting, with its default: the command line is made from it
`problem`    the digits or CIFAR-100, with networks of several sizes; `networks`, those of the digits
`trials`     what a row is: a scheme made for a problem; the student alone; offline distillation
`rows`       the rows of the table; those of each group of schemes are in `rows_of`
`trained`    the networks that schemes begin with
`running`    the seeds of a trial, inherit to `jaxkd.training.fit`; `inputs`, their batches
`costs`      FLOPs of the compiled steps, and time beside the student alone
`report`     results.json, the table, report.md
`curves`     the plots
`main`       the command: run, resume, finish
===========  ==================================================================================================
"""
