"""Frames of MinAtar as lines of text, and episode strips drawn from these lines."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from experiments.kit import plots

FRAMES, EVERY = 8, 6  # frames of an episode, and the steps between them
EMPTY = "."
# By the first channel that is set: of Breakout the paddle, the ball, its trail and the bricks; of Space Invaders the
# cannon, the aliens, their direction (twice), the cannon's bullets and theirs.
COLORS = ("#56B4E9", "#E69F00", "#7F7F7F", "#009E73", "#F0E442", "#D55E00")
LINE = re.compile(r"(?P<game>\w+), (?P<who>teacher|student), step (?P<step>\d+)(?P<end>, the end)?: (?P<board>[.\d/]+)")


def board(observation: np.ndarray) -> str:
    """Returns an observation ``[height, width, channels]``, row by row, as the number of the first channel that is set.

    >>> board(np.array([[[0, 1], [1, 1]], [[0, 0], [0, 1]]]))
    '10/.1'
    """
    first = np.where(observation.any(-1), (observation > 0).argmax(-1).astype(int), -1)
    return "/".join("".join(EMPTY if i < 0 else str(i) for i in row) for row in first)


def lines(title: str, observations: np.ndarray, length: int) -> list[str]:
    """Returns some frames of an episode of so many steps, each as a line."""
    steps = [step for step in range(0, FRAMES * EVERY, EVERY) if step < length]
    if length <= FRAMES * EVERY and length - 1 not in steps:
        steps.append(length - 1)
    ends = [", the end" if step == length - 1 else "" for step in steps]
    return [f"{title}, step {step}{end}: {board(observations[step])}" for step, end in zip(steps, ends, strict=True)]


def picture(text: str) -> np.ndarray:
    """Returns the colors ``[height, width, 3]`` of a board, from 0 to 1."""
    shades: dict[str, tuple[float, ...]] = {EMPTY: (0.08, 0.08, 0.1)}
    shades |= {str(i): tuple(int(color[k : k + 2], 16) / 255 for k in (1, 3, 5)) for i, color in enumerate(COLORS)}
    return np.array([[shades[cell] for cell in row] for row in text.split("/")])


def strip(game: str, methods: Mapping[str, str]) -> Callable[[Mapping[str, Any]], bytes]:
    """Returns the function that draws frames of the teacher and of some methods' first students.

    Args:
      game: name of the game.
      methods: titles of the rows by the names of the methods.
    """

    def draw(results: Mapping[str, Any]) -> bytes:
        found: dict[str, dict[str, re.Match[str]]] = {}
        for name, title in methods.items():
            for line in results["rows"].get(name, {}).get("samples", []):
                row = LINE.fullmatch(line)
                if row is not None and row["game"] == game:  # the teacher's episode is in the lines of every method
                    found.setdefault("teacher" if row["who"] == "teacher" else title, {})[row["step"]] = row
        count = max(len(found), 1)
        with plots.figure(count, FRAMES + 1, 1.15 * (FRAMES + 1) + 1.4, 1.45 * count, squeeze=False) as (_, grid, save):
            for axes in grid.ravel():
                axes.set_axis_off()
            for line, (who, rows) in zip(grid, found.items(), strict=False):
                for axes, row in zip(line, rows.values(), strict=False):
                    axes.imshow(picture(row["board"]), interpolation="nearest")
                    axes.set_title(f"{row['step']}{', end' if row['end'] else ''}", fontsize=8)
                line[0].text(-0.15, 0.5, who, transform=line[0].transAxes, ha="right", va="center", fontsize=9)
            return save()

    return draw
