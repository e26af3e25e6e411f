"""Brute-force references of `jaxkd.dense`: plain loops over boxes, in float64 and in the order of the definitions."""

import numpy as np


def iou(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0.0) * max(height, 0.0)
    areas = sum((x[2] - x[0]) * (x[3] - x[1]) for x in (a, b))
    return common / (areas - common) if common > 0 else 0.0


def suppress(boxes, scores, labels, where, most, factor, least=-np.inf):
    """Greedy suppression of one image: (index, score) of the kept boxes; ``factor(iou)`` multiplies the scores."""
    left = {n: float(scores[n]) for n in range(len(boxes)) if where[n] and scores[n] >= least and scores[n] > -np.inf}
    kept = []
    while left and len(kept) < most:
        best = min(left, key=lambda n: (-left[n], n))
        kept.append((best, left.pop(best)))
        for n in list(left):
            if labels[n] == labels[best]:
                scale = factor(iou(boxes[best], boxes[n]))
                left[n] = left[n] * scale if scale else -np.inf
                if left[n] < least or left[n] == -np.inf:
                    del left[n]
    return kept


def match(anchors, boxes, exists, positive, negative):
    """(object or -1, ignored) of each anchor of one image."""
    overlaps = np.array([[iou(box, anchor) for anchor in anchors] for box in boxes])
    found, ignored = np.full(len(anchors), -1), np.zeros(len(anchors), bool)
    truths = [n for n in range(len(boxes)) if exists[n]]
    for a in range(len(anchors)):
        best = max(truths, key=lambda n: (overlaps[n, a], -n), default=None)
        if best is not None and overlaps[best, a] > 0:
            if overlaps[best, a] >= positive:
                found[a] = best
            elif overlaps[best, a] >= negative:
                ignored[a] = True
    taken = set()
    for n in sorted(truths, key=lambda n: (-overlaps[n].max(), n)):
        free = [a for a in range(len(anchors)) if a not in taken]
        best = max(free, key=lambda a: (overlaps[n, a], -a), default=None)
        if best is not None and overlaps[n, best] > 0:
            taken.add(best)
            found[best], ignored[best] = n, False
    return found, ignored


def random_boxes(rng, *shape, size=12):
    """Boxes of whole pixels, so that overlaps are exact quotients and ties are frequent."""
    corners = rng.integers(0, size, (*shape, 2, 2))
    low = corners.min(-2)
    return np.concatenate([low, low + rng.integers(1, size // 2, (*shape, 2))], -1).astype(np.float32)
