"""CTC decoding in NumPy and float64: by enumeration of all paths, and a beam of prefixes in a dictionary."""

import collections
import itertools

import numpy as np


def log_softmax(x):
    x = np.asarray(x, np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where((x > -np.inf).any(-1, keepdims=True), x - np.logaddexp.reduce(x, -1, keepdims=True), -np.inf)


def collapse(path, blank):
    """Returns the labels of a path: repetitions are removed, then blanks."""
    return tuple(int(symbol) for symbol, _ in itertools.groupby(path) if symbol != blank)


def ctc_of_all_labels(logits, blank=0):
    """Returns the log-probability of every labeling of one example ``[frames, classes]`` that can occur."""
    log_probs, found = log_softmax(logits), collections.defaultdict(lambda: -np.inf)
    for path in itertools.product(range(log_probs.shape[-1]), repeat=len(log_probs)):
        labels = collapse(path, blank)
        found[labels] = np.logaddexp(found[labels], sum(log_probs[t, symbol] for t, symbol in enumerate(path)))
    return {labels: value for labels, value in found.items() if value > -np.inf}


def prefix_beam_search(logits, beams, blank=0, length=None):
    """Returns the labels and log-probabilities that a beam of prefixes keeps of one example, the best first."""
    log_probs, kept = log_softmax(logits), {(): (0.0, -np.inf)}
    for frame in log_probs:
        after = collections.defaultdict(lambda: (-np.inf, -np.inf))

        def add(prefix, ended, opened, after=after):
            old = after[prefix]
            after[prefix] = np.logaddexp(old[0], ended), np.logaddexp(old[1], opened)

        for prefix, (ended, opened) in kept.items():
            add(prefix, np.logaddexp(ended, opened) + frame[blank], -np.inf)
            if prefix:
                add(prefix, -np.inf, opened + frame[prefix[-1]])
            for symbol in range(len(frame)):
                if symbol != blank and (length is None or len(prefix) < length):
                    repeated = bool(prefix) and prefix[-1] == symbol
                    add(
                        (*prefix, symbol), -np.inf, (ended if repeated else np.logaddexp(ended, opened)) + frame[symbol]
                    )
        scores = {prefix: np.logaddexp(*both) for prefix, both in after.items()}
        best = [prefix for prefix in sorted(scores, key=lambda p: -scores[p])[:beams] if scores[prefix] > -np.inf]
        kept = {prefix: after[prefix] for prefix in best}
    return sorted(((prefix, np.logaddexp(*both)) for prefix, both in kept.items()), key=lambda found: -found[1])
