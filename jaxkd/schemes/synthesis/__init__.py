"""Synthesisers: where the images of `jaxkd.schemes.data_free` come from.

================  ====================================================================================================
`contract`        `Synthesis`, the three functions that one is; `given`, the batch's own images
`dafl`            `dafl`: a generator trained beside the student
`inversion`       `inversion`: pixels, by the teacher's BatchNorm statistics, optionally against the student
`cmi`             `cmi`: a generator and its latent codes, round after round, each image unlike the earlier ones
`terms`           the terms of their losses
`rounds`          the pool of images, and how a round of updates ends in it
================  ====================================================================================================
"""

from jaxkd.schemes.synthesis.cmi import cmi
from jaxkd.schemes.synthesis.contract import Synthesis, given
from jaxkd.schemes.synthesis.dafl import dafl
from jaxkd.schemes.synthesis.inversion import inversion

__all__ = ["Synthesis", "cmi", "dafl", "given", "inversion"]
