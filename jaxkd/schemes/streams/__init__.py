"""Schemes of streams: a student that adapts to a video while it runs.

`key_frames` is the scheme. `at_intervals`, `at_random`, `on_change` and `as_predicted` choose the frames for which it
asks the teacher; `init_selector` and `selector_logits` are the recurrent network of the last one. `confident_mse` is
the loss of a detector's raw outputs.
"""

from jaxkd.schemes.streams._key_frames import key_frames
from jaxkd.schemes.streams._rules import KeyFrameRule, as_predicted, at_intervals, at_random, on_change
from jaxkd.schemes.streams._selector import init_selector, selector_logits
from jaxkd.schemes.streams._targets import confident_mse

__all__ = [
    "KeyFrameRule",
    "as_predicted",
    "at_intervals",
    "at_random",
    "confident_mse",
    "init_selector",
    "key_frames",
    "on_change",
    "selector_logits",
]
