"""CTC decoding and acoustic models in NumPy and float64.

Decoding is by enumeration of all paths, and a beam of prefixes in a dictionary.
"""

import collections
import itertools

import numpy as np

from tests.models.language import reference as language


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


# --- acoustic models, one utterance [frames, bands] at a time, from the formulas of the papers


def silu(x):
    return x / (1 + np.exp(-x))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def subsample(params, x):
    """Convolutions of kernel 3 and stride 2 with zeros around the frames, frame by frame."""
    for convolution in params.get("convolutions", {}).values():
        kernel = convolution["kernel"].reshape(3, x.shape[1], -1)
        padded = np.pad(x, ((1, 1), (0, 0)))
        starts = range(0, len(x), 2)
        x = silu(np.array([sum(padded[t + k] @ kernel[k] for k in range(3)) for t in starts]) + convolution["bias"])
    return language.linear(params["out"], x)


def lstm(params, x):
    """Hochreiter & Schmidhuber with a forget gate: gates i, f, g, o."""
    kernel, bias = params["dense_h"]["kernel"], params["dense_h"]["bias"]
    memory, state, states = np.zeros(kernel.shape[0]), np.zeros(kernel.shape[0]), []
    for frame in x:
        gates = frame @ params["dense_i"]["kernel"] + state @ kernel + bias
        i, f, g, o = np.split(gates, 4)
        memory = sigmoid(f) * memory + sigmoid(i) * np.tanh(g)
        state = sigmoid(o) * np.tanh(memory)
        states.append(state)
    return np.array(states)


def depthwise(params, x, right):
    """Each feature's weighted sum over neighboring frames, of which ``right`` are ahead."""
    kernel, result = params["kernel"][:, 0], np.zeros_like(x)
    for t in range(len(x)):
        for k in range(len(kernel)):
            read = t + k - (len(kernel) - 1 - right)
            if 0 <= read < len(x):
                result[t] += kernel[k] * x[read]
    return result + params["bias"]


def attention(params, x, config):
    """Rotary attention of each head over the frames from ``left_context`` before to ``right_context`` ahead."""
    size, frames = config.width // config.heads, len(x)
    query, key, value = (
        language.linear(params[name], x).reshape(frames, config.heads, size) for name in ("query", "key", "value")
    )
    read = np.zeros_like(value)
    for head, t in itertools.product(range(config.heads), range(frames)):
        first = 0 if config.left_context is None else max(0, t - config.left_context)
        end = frames if config.right_context is None else min(frames, t + config.right_context + 1)
        turned = language.rotate(query[t, head], t, config.rope_base, interleaved=False)
        keys = [language.rotate(key[s, head], s, config.rope_base, interleaved=False) for s in range(first, end)]
        weights = language.softmax(np.array(keys) @ turned / size**0.5)
        read[t, head] = weights @ value[first:end, head]
    return language.linear(params["out"], read.reshape(frames, -1))


def norm(params, x):
    return language.norm(params, x, 1e-5)


def mlp(params, x):
    return language.linear(params["down"], silu(language.linear(params["up"], x)))


def conformer_layer(params, x, config):
    """Gulati et al. 2020, equation 1: half an MLP, attention, convolution, half an MLP, norm."""
    x = x + mlp(params["first_mlp"], norm(params["first_mlp_norm"], x)) / 2
    x = x + attention(params["attention"], norm(params["attention_norm"], x), config)
    own = params["convolution"]
    values, gates = np.split(language.linear(own["gated"], norm(own["norm"], x)), 2, axis=-1)
    half = config.kernel // 2
    right = half if config.right_context is None else min(half, config.right_context)
    inner = norm(own["depthwise_norm"], depthwise(own["depthwise"], values * sigmoid(gates), right))
    x = x + language.linear(own["out"], silu(inner))
    x = x + mlp(params["mlp"], norm(params["mlp_norm"], x)) / 2
    return norm(params["final_norm"], x)


def cnn_layer(params, x, config):
    right = config.kernel // 2 if config.right_context is None else min(config.kernel // 2, config.right_context)
    return x + mlp(params["mlp"], norm(params["norm"], depthwise(params["depthwise"], x, right)))


def lstm_layer(params, x, config):
    states = lstm(params["forward"]["cell"], x)
    if not config.bidirectional:
        return states
    return np.concatenate([states, lstm(params["backward"]["cell"], x[::-1])[::-1]], axis=-1)


def acoustic(layer, params, x, config):
    """Returns hidden states and logits."""
    x = subsample(params["subsample"], x)
    for number in range(config.layers):
        x = layer(params["layers"][number], x, config)
    x = norm(params["final_norm"], x) if "final_norm" in params else x
    return x, language.linear(params["head"], x)
