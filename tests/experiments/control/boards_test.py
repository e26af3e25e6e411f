"""Frames as lines of text, and the strip that is drawn from them."""

import numpy as np
import pytest

from experiments.control import boards


def observations(steps):
    """Returns frames of a field of 2 × 3 cells and 2 channels."""
    found = np.zeros((steps, 2, 3, 2))
    found[:, 0, 1, 0] = 1
    found[np.arange(steps), 1, np.arange(steps) % 3, 1] = 1
    return found


def test_lines_have_the_frames_of_an_episode():
    found = boards.lines("breakout, teacher", observations(200), 14)
    assert found == [
        "breakout, teacher, step 0: .0./1..",
        "breakout, teacher, step 6: .0./1..",
        "breakout, teacher, step 12: .0./1..",
        "breakout, teacher, step 13, the end: .0./.1.",
    ]
    assert len(boards.lines("breakout, teacher", observations(200), 200)) == boards.FRAMES
    matched = boards.LINE.fullmatch(found[-1])
    assert matched["game"] == "breakout" and matched["who"] == "teacher" and matched["board"] == ".0./.1."


def test_a_picture_has_a_color_for_each_channel():
    found = boards.picture(".0./1..")
    assert found.shape == (2, 3, 3)
    np.testing.assert_allclose(found[0, 1] * 255, [0x56, 0xB4, 0xE9])
    assert len(np.unique(found.reshape(-1, 3), axis=0)) == 3


@pytest.mark.parametrize("names", [[], ["kl"], ["kl", "student"]])
def test_a_strip_of_finished_and_unfinished_results(names):
    def samples(length):
        both = [("teacher", 200), ("student", length)]
        return [line for who, steps in both for line in boards.lines(f"breakout, {who}", observations(200), steps)]

    results = {"rows": {name: {"samples": samples(10 + i)} for i, name in enumerate(names)}}
    png = boards.strip("breakout", {"kl": "KL", "student": "alone", "nll": "NLL"})(results)
    assert png.startswith(b"\x89PNG")
