"""Options that the parts share."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class Options(NamedTuple):
    """Options of a part.

    Attributes:
      rehearse: whether to use tiny sizes, for a machine without an accelerator.
      work: folder of trainings and compiled programs.
      data_dir: TFDS data_dir with cifar100, or an .npz file of its images and labels; None for no trainings.
      teacher_weights: file of a trained resnet32x4; None to train one.
      seeds: number of students.
    """

    rehearse: bool
    work: Path
    data_dir: Path | None = None
    teacher_weights: Path | None = None
    seeds: int = 5
