"""Language: a pretrained or trained teacher, and small students, on real text: ``python -m experiments.language TASK``.

A file for each task: `sst`, `trec`, `stsb`, `novels`, `stories`, `g2p`.
"""
