"""A decoder in NumPy and float64, one sequence at a time, written from the papers' formulas."""

import math

import numpy as np

ERF = np.vectorize(math.erf)
ACTIVATIONS = {
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu": lambda x: x * (1 + ERF(x / math.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x: np.maximum(x, 0),
}


def norm(params, x, epsilon):
    if "bias" in params:
        x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon)
    return x * params["scale"] + params.get("bias", 0)


def linear(params, x):
    return x @ params["kernel"] + params.get("bias", 0)


def softmax(x):
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def rotate(vector, position, base, interleaved):
    """Turns one head's vector, a pair of features at a time."""
    size = len(vector)
    turned = np.array(vector)
    for pair in range(size // 2):
        a, b = (2 * pair, 2 * pair + 1) if interleaved else (pair, pair + size // 2)
        angle = position * base ** (-2 * pair / size)
        turned[a] = vector[a] * math.cos(angle) - vector[b] * math.sin(angle)
        turned[b] = vector[b] * math.cos(angle) + vector[a] * math.sin(angle)
    return turned


def attention(params, x, config, *, causal, source=None, turn=True):
    """Returns the output, and the scores [heads, queries, keys], -inf where a query does not see a key."""
    source = x if source is None else source
    size = config.head_dim or config.width // config.heads
    kv_heads = config.key_value_heads or config.heads
    query = linear(params["query"], x).reshape(len(x), config.heads, size)
    key = linear(params["key"], source).reshape(len(source), kv_heads, size)
    value = linear(params["value"], source).reshape(len(source), kv_heads, size)
    if turn and config.rope_base is not None:
        query, key = (
            np.array(
                [[rotate(h, t, config.rope_base, config.rope_interleaved) for h in heads] for t, heads in enumerate(y)]
            )
            for y in (query, key)
        )
    out, scores = np.zeros((len(x), config.heads, size)), np.full((config.heads, len(x), len(source)), -np.inf)
    for head in range(config.heads):
        group = head // (config.heads // kv_heads)
        for t in range(len(x)):
            end = t + 1 if causal else len(source)
            scores[head, t, :end] = key[:end, group] @ query[t, head] / math.sqrt(size)
            out[t, head] = softmax(scores[head, t, :end]) @ value[:end, group]
    return linear(params["out"], out.reshape(len(x), -1)), scores


def mlp(params, x, config):
    activate = ACTIVATIONS[config.activation]
    inner = activate(linear(params["gate"], x)) * linear(params["up"], x) if config.gated else None
    return linear(params["down"], activate(linear(params["up"], x)) if inner is None else inner)


def layer(params, x, config, *, causal, source=None):
    parts = {"attention_norm": lambda x: attention(params["attention"], x, config, causal=causal)[0]}
    if source is not None:
        parts["cross_attention_norm"] = lambda x: attention(
            params["cross_attention"], x, config, causal=False, source=source, turn=False
        )[0]
    parts["mlp_norm"] = lambda x: mlp(params["mlp"], x, config)
    for name, part in parts.items():
        if config.pre_norm:
            x = x + part(norm(params[name], x, config.norm_epsilon))
        else:
            x = norm(params[name], x + part(x), config.norm_epsilon)
    return x


def decoder(params, tokens, config, source=None):
    """Returns the logits [tokens, vocabulary] of one sequence, which may read a source."""
    x = params["embed"]["embedding"][tokens]
    if config.rope_base is None:
        x = x + params["positions"]["embedding"][: len(tokens)]
    for number in range(config.layers):
        x = layer(params["layers"][number], x, config, causal=True, source=source)
    if config.pre_norm:
        x = norm(params["final_norm"], x, config.norm_epsilon)
    return x @ params["embed"]["embedding"].T if config.tied else linear(params["lm_head"], x)


def encoder(params, tokens, config, types=None):
    """Returns the hidden states [tokens, width] of one sequence."""
    table = params["embed"]
    x = table["words"]["embedding"][tokens]
    if "projection" in table:
        x = linear(table["projection"], x)
    x = x + table["positions"]["embedding"][: len(tokens)]
    if "types" in table:
        x = x + table["types"]["embedding"][np.zeros_like(tokens) if types is None else types]
    x = norm(table["norm"], x, config.norm_epsilon)
    for number in range(config.layers):
        own = params["layers"][number]
        if "bottleneck" in own:
            maps = own["bottleneck"]
            narrow = norm(maps["input_norm"], linear(maps["input"], x), config.norm_epsilon)
            narrow = layer(own, narrow, config.inner, causal=False)
            x = norm(maps["output_norm"], x + linear(maps["output"], narrow), config.norm_epsilon)
        else:
            x = layer(own, x, config, causal=False)
    return norm(params["final_norm"], x, config.norm_epsilon) if config.pre_norm else x


def recurrence(params, tokens, config):
    """Returns the logits [tokens, vocabulary] of one sequence of a gated linear recurrence."""
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    x = params["embed"]["embedding"][tokens]
    for number in range(config.layers):
        own = params["layers"][number]
        part, y = own["recurrence"], norm(own["recurrence_norm"], x, config.norm_epsilon)
        inputs, state = linear(part["input"], y), 0
        states = []
        for step in inputs:
            kept = sigmoid(part["decay"]) ** (8 * sigmoid(linear(part["recurrence_gate"], step)))
            state = kept * state + np.sqrt(1 - kept**2) * sigmoid(linear(part["input_gate"], step)) * step
            states.append(state)
        gate = ACTIVATIONS["gelu_tanh"](linear(part["gate"], y))
        x = x + linear(part["out"], np.array(states) * gate)
        x = x + mlp(own["mlp"], norm(own["mlp_norm"], x, config.norm_epsilon), config)
    x = norm(params["final_norm"], x, config.norm_epsilon)
    return x @ params["embed"]["embedding"].T if config.tied else linear(params["lm_head"], x)
