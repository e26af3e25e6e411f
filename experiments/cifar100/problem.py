"""CIFAR-100 with the networks of the literature and the published recipe.

Training images are random crops of 32 from 40 pixels, and flipped.
"""

import pathlib

from experiments.kit import inputs

PROBLEM = inputs.CIFAR100
CLASS_NAMES = tuple(pathlib.Path(__file__).with_name("class_names.txt").read_text().split())  # by label
