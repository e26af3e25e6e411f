"""Videos: networks that read frame after frame: ``python -m experiments.video TASK``.

A file for each task: `pose`, the task ``jhmdb_pose``.
"""
