"""Videos of people, and what is found in them: ``python -m experiments.video TASK``.

`pose` compares networks of each frame with dynamic kernels. `online` is a detector that adapts while a video runs, on
`frames`, the clips and detectors; `strips` draws its figures.
"""
