"""Detection: a detector that learns from a larger one: ``python -m experiments.detection TASK``.

`cells` has the tasks, `sets` reads any set of images with boxes, and `pictures` draws boxes on images.
"""
