# %% [markdown]
# # Language
#
# A small decoder of bytes learns from the help pages that come with Python, and teaches a smaller one. The notebook
# shows packed documents, metrics of tokens, where student and teacher differ in a text, and the losses that never hold
# the logits of all tokens. It takes about a minute on a CPU.

# %%
import pydoc_data.topics

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax

import jaxkd
from jaxkd import data, losses, metrics, models
from jaxkd.data import text
from jaxkd.training import fit

plt.rcParams.update({"figure.dpi": 70, "axes.spines.top": False, "axes.spines.right": False})

# %% [markdown]
# ## Documents as rows
#
# `text.packed` fills rows of one length with documents. `segments` and `positions` tell the model which tokens may see
# each other, `mask` which positions have a label.

# %%
tokenizer = text.ByteTokenizer()
rows = text.packed(list(pydoc_data.topics.topics.values()), tokenizer, length=64)
order = np.random.default_rng(0).permutation(len(rows["tokens"]))
train = data.Resident({name: value[order[256:]] for name, value in rows.items()}, 16, seed=0, drop_remainder=True)
held_out = data.Resident({name: value[order[:256]] for name, value in rows.items()}, 64, shuffle=False)
print({name: value.shape for name, value in rows.items()})
print(repr(tokenizer.decode(rows["tokens"][order[0]].tolist())))

# %% [markdown]
# ## A teacher and two students
#
# `metrics.tokens` reports perplexity and bits per byte, `metrics.imitation` the divergences from the teacher and how
# many of the student's proposals the teacher would accept in speculative decoding.


# %%
def decoder(width, layers):
    config = models.DecoderConfig(
        vocabulary=tokenizer.vocabulary, width=width, layers=layers, heads=4, mlp_width=2 * width
    )
    return jaxkd.adapters.nnx(lambda rngs: models.Decoder(config, rngs=rngs), inputs=models.token_inputs)


def measures(context):
    found = metrics.tokens(context, bytes_path="batch/bytes")
    return {**found, **(metrics.imitation(context) if context.teacher else {})}


def train_model(model, teacher, objective, steps):
    kd = jaxkd.distill(model, teacher, objective, optimizer=optax.adam(3e-3), metrics=measures)
    return fit(kd, train, steps=steps, key=jax.random.key(0), eval_data=held_out, eval_every=steps // 5, progress=False)


large, small = decoder(64, 2), decoder(32, 1)
ce = jaxkd.term(losses.cross_entropy, "student/logits", "batch/label")
kl = jaxkd.term(losses.soft_target_kl, "student/logits", "teacher/logits", temperature=1.0)
taught = train_model(large, jaxkd.teachers.none(), ce, 300)
teacher = jaxkd.teachers.frozen(large, taught.state.student)
results = {
    "teacher": taught,
    "student alone": train_model(small, jaxkd.teachers.none(), ce, 200),
    "distilled": train_model(small, teacher, kl, 200),
}
for name, result in results.items():
    evaluations = [row for row in result.history if "eval/bits_per_byte" in row]
    plt.plot([row["step"] for row in evaluations], [row["eval/bits_per_byte"] for row in evaluations], "o-", label=name)
    print(f"{name}: {evaluations[-1]['eval/bits_per_byte']:.3f} bits per byte")
plt.gca().set(xlabel="step", ylabel="bits per byte, held out")
plt.legend()
last = results["distilled"].history[-1]
print({name: round(last[f"eval/{name}"], 3) for name in ("forward_kl", "reverse_kl", "acceptance")})
plt.show()

# %% [markdown]
# ## Where they differ
#
# A loss has one value per token, so that it also shows where in a text the student is far from its teacher.

# %%
batch = {name: value[order[:1]] for name, value in rows.items()}
ours, _ = small.apply(results["distilled"].state.student, batch, key=None, train=False)
theirs, _ = large.apply(taught.state.student, batch, key=None, train=False)
values = np.asarray(losses.soft_target_kl(ours["logits"], theirs["logits"], temperature=1.0))[0]
letters = [bytes([token]).decode("latin-1") if token < 256 else "■" for token in batch["label"][0].tolist()]
plt.figure(figsize=(11, 2.2))
plt.bar(range(64), values)
plt.gca().set(xticks=range(64), xticklabels=["␣" if c == " " else "↵" if c == "\n" else c for c in letters])
plt.ylabel("KL (nats)")
plt.show()
# %% [markdown]
# ## Losses without the logits
#
# With a vocabulary of a real tokenizer, the logits of all tokens are the largest array of the step.
# `linear_soft_target_kl` takes hidden states and kernels, and has the same value and gradients. The compiled memory of
# both, and their values for a few tokens:


# %%
def dense(h, k, teacher_h, teacher_k):
    return losses.soft_target_kl(h @ k, teacher_h @ teacher_k, temperature=2.0).mean()


def chunked(h, k, teacher_h, teacher_k):
    return losses.linear_soft_target_kl(h, k, teacher_h, teacher_k, temperature=2.0).mean()


def arrays(tokens, vocabulary):
    h, k = jax.random.normal(jax.random.key(0), (tokens, 64)), jax.random.normal(jax.random.key(1), (64, vocabulary))
    return h, 0.1 * k, h[::-1], 0.1 * k[::-1]


for loss in (dense, chunked):
    shapes = jax.eval_shape(lambda: arrays(2048, 32_000))
    compiled = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(*shapes).compile()
    mebibytes = compiled.memory_analysis().temp_size_in_bytes / 2**20
    print(f"{loss.__name__}: value {loss(*arrays(32, 500)):.5f}, temporary memory {mebibytes:.0f} MiB")

# %% [markdown]
# [Language models](../guides/models.md), [texts](../guides/language.md) and
# [examples/on_policy_stories.py](../../examples/on_policy_stories.py) continue from here.
