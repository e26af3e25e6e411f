"""The skeleton of experiments; a new field adds a problem and configurations.

============  ======================================================================================================
`command`     the command line: exit statuses, workers, compiled-program cache, one run to a folder, versions
`recipe`      `Protocol` (the settings that decide a number), `Problem` (data and networks), the published optimizer
`methods`     the table of methods: objective, taps, stages, published weights
`taps`        the taps of teacher and student that a method compares
`inputs`      data on the device, and which images students and teachers see
`training`    one training: its evaluation, its outputs and its curve
`teachers`    teachers: trained once, measured once, with their outputs cached
`cell`        cells: a pair, a method and a seed, run once by one process
`rows`        methods that are rows of a table: several seeds, and baselines of equal cost
`plan`        FLOPs, time and disk of a command before it runs
`measures`    what is measured of trained models
`statistics`  means, t intervals and paired gains over seeds
`report`      tables in Markdown and for the terminal, and numbers as text
`plots`       panels of figures
`files`       files that several processes share: locks, atomic writes, JSON results
============  ======================================================================================================
"""
