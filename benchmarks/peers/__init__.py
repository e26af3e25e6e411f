"""The same distillation by jaxkd, by Keras and by Tunix, in turn in one run: ``python -m benchmarks.peers``."""
