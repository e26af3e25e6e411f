"""Classification of images beyond one teacher's labels: ``python -m experiments.classification TASK``.

A file for each task; `images` has the data, the networks and the teachers that they share.
"""
