"""Distillation of a small network on handwritten digits, of which few are labelled: ``python -m experiments.digits``.

===========  ==================================================================================================
`config`     every setting, with its default: the command line is made from it
`models`     the two networks
`setting`    who sees which images and labels: the batches of all seeds
`methods`    the objective of each method
`training`   teachers and students: all seeds of a method as one `Distiller`, inherit to `jaxkd.training.fit`
`statistics` accuracy, agreement, calibration error
`report`     results.json, the table, report.md
`curves`     curves.png
`main`       the command: run, resume, finish
`sweep`      how the settings were chosen, on the validation split
===========  ==================================================================================================
"""
