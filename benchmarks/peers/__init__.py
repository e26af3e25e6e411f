"""The same distillation with jaxkd, Keras and Tunix: ``python -m benchmarks.peers``."""
