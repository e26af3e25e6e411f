"""Segmentation: the classes of pixels, of small images: ``python -m experiments.segmentation TASK``.

A file for the task, `camvid`; `scenes`, the images and how a student sees them, of any set with masks; and `pictures`,
figures of predictions and of the classes.
"""
