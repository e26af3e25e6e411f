"""The CIFAR-100 distillation benchmark: ``python -m experiments.cifar100 --data-dir DIR``.

===============  =====================================================================================================
`config`         the command line, the presets, and `Protocol`: all that decides a number
`recipe`         the published optimizer, schedule, augmentation and weights
`methods`        every row of the tables: its objective, its stages, and what it reads of the two networks
`objectives`     what each method minimizes, with the published weights
`points`         the points of the two networks that a method compares
`inputs`         the data on the device
`teachers`       a teacher is trained once, measured once, and its outputs are kept where a method allows it
`cells`          one student: a pair, a method and a seed
`together`       all seeds of a pair and a method as one program
`plan`           what a command would do, and what that costs
`measures`       what is measured of a trained model
`statistics`     means, intervals and paired differences over seeds
`published`      the tables of the literature
`report`         Markdown and JSON
`rows`           the rows of its tables
`curves`         the plots
`main`           the command
===============  =====================================================================================================
"""
