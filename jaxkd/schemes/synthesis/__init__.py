"""Data-free distillation: the student trains on images made from the teacher."""

from jaxkd.schemes.synthesis._cmi import cmi
from jaxkd.schemes.synthesis._contract import Synthesis
from jaxkd.schemes.synthesis._dafl import dafl
from jaxkd.schemes.synthesis._data_free import data_free
from jaxkd.schemes.synthesis._inversion import inversion

__all__ = ["Synthesis", "cmi", "dafl", "data_free", "inversion"]
