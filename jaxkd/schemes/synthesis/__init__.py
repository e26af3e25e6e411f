"""Data-free distillation: the student trains on images made from the teacher.

===========  =========================================================================================================
`data_free`  distiller that trains on synthesized batches
`Synthesis`  the three functions of a synthesizer
`dafl`       a generator, trained beside the student (DAFL)
`inversion`  pixels, fitted to the teacher's BatchNorm statistics, optionally against the student (DeepInversion)
`cmi`        a generator and latent codes, fitted anew for each batch, with a contrastive term (CMI)
===========  =========================================================================================================
"""

from jaxkd.schemes.synthesis._cmi import cmi
from jaxkd.schemes.synthesis._contract import Synthesis
from jaxkd.schemes.synthesis._dafl import dafl
from jaxkd.schemes.synthesis._data_free import data_free
from jaxkd.schemes.synthesis._inversion import inversion

__all__ = ["Synthesis", "cmi", "dafl", "data_free", "inversion"]
