"""On-policy distillation of a writer: the student learns from the teacher at the texts that the student writes (GKD).

    python examples/on_policy_stories.py [FOLDER of stories260K]

The teacher is stories260K, a Llama in Hugging Face's format with tokenizer_scores.json; without a folder, a decoder of
bytes that first learns from the help pages of Python. The student, about a fifth as large, learns from texts of the
teacher, then from its own (sampling, teacher and update are one program), while a copy continues with the teacher's.
Prints what each writes and how far it is from the teacher there, and writes runs/examples/on_policy_stories.png. Takes
about two minutes on one core of a CPU. Needs `pip install "jaxkd-toolkit[experiments]"`.
"""

import pathlib
import pydoc_data.topics
import sys

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax

import jaxkd
from jaxkd import data, losses, metrics, models, schemes, weights
from jaxkd.data import text

LENGTH, STEPS = 64, 200
ce = jaxkd.term(losses.cross_entropy, "student/logits", "batch/label")
forward = jaxkd.term(losses.soft_target_kl, "student/logits", "teacher/logits", temperature=1.0)
jsd = jaxkd.term(losses.generalized_jsd, "student/logits", "teacher/logits", beta=0.5)


def decoder(config):
    return jaxkd.adapters.nnx(lambda rngs: models.Decoder(config, rngs=rngs), inputs=models.token_inputs)


def writer(config):  # a function of variables and a batch of prompts, of one token here
    return models.generator(lambda rngs: models.Decoder(config, rngs=rngs), prompt=1, length=LENGTH - 1)


def train(config, teacher, objective, rows, steps, own=False, start=None):
    model = jaxkd.wrappers.pretrained(decoder(config), start) if start else decoder(config)
    kd = jaxkd.distill(model, teacher, objective, optimizer=optax.adam(3e-3), metrics=metrics.tokens)
    kd = schemes.on_policy(kd, writer(config), fraction=1.0) if own else kd
    rows = data.Resident(rows, 16, seed=0, drop_remainder=True)
    return jaxkd.training.fit(kd, rows, steps=steps, key=jax.random.key(0), progress=False).state.student


def write(config, variables, count, seed):
    begin, keys = tokenizer.specials["bos"], jax.random.split(jax.random.key(seed), count)
    return jax.device_get(jax.jit(writer(config))(variables, {"tokens": jnp.full((count, 1), begin)}, keys=keys))


def logits(config, variables, rows):
    return jax.jit(lambda v: decoder(config).apply(v, rows, key=None, train=False)[0]["logits"])(variables)


if len(sys.argv) > 1:
    fields, taught = weights.load_hf(sys.argv[1])
    tokenizer = text.load_tokenizer(pathlib.Path(sys.argv[1]) / "tokenizer_scores.json")
    large = models.DecoderConfig(**fields)
else:
    tokenizer = text.ByteTokenizer()
    large = models.DecoderConfig(vocabulary=tokenizer.vocabulary, width=64, layers=3, heads=4, mlp_width=192)
    rows = text.packed(list(pydoc_data.topics.topics.values()), tokenizer, length=LENGTH)
    taught = train(large, jaxkd.teachers.none(), ce, rows, 400)
small = models.DecoderConfig(vocabulary=large.vocabulary, width=32, layers=2, heads=4, mlp_width=96)
teacher = jaxkd.teachers.frozen(decoder(large), taught)
rows = write(large, taught, 512, seed=1)
first = train(small, teacher, forward, rows, STEPS)
students, found = {"teacher's texts": first}, {}
students["and more of them"] = train(small, teacher, forward, rows, STEPS, start=first)
students["and its own texts"] = train(small, teacher, jsd, rows, STEPS, own=True, start=first)
for name, variables in students.items():
    own = write(small, variables, 64, seed=2)
    ours, theirs = logits(small, variables, own), logits(large, taught, own)
    found[name] = float(losses.reverse_kl(ours, theirs)[own["mask"]].mean())
    print(f"{name:<20} KL to the teacher on own texts: {found[name]:.3f} nats a token")
    print("   ", repr(tokenizer.decode(own["tokens"][0].tolist())))
pathlib.Path("runs/examples").mkdir(parents=True, exist_ok=True)
plt.figure().add_subplot(xlabel="KL to the teacher on own texts (nats)").barh(list(found), list(found.values()))
plt.savefig("runs/examples/on_policy_stories.png", dpi=120, bbox_inches="tight")
