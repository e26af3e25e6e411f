"""A detector learns from a larger one, mostly from images without labels, and a picture shows what both find.

    python examples/detector.py [--data-dir FOLDER of prepared TFDS sets, with bccd]

Without --data-dir, the script draws rectangles; bccd has blood cells. The teacher learns from all boxes; the student
has those of 16 images, and by `objectives.soft_detections` the teacher's of every image. Prints AP at an IoU of 0.5 and
writes runs/examples/detector.png, the boxes that each of them finds. Takes one to two minutes on one core of a CPU.
Needs `pip install "jaxkd-toolkit[experiments]"`.
"""

import argparse
import pathlib

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax

import jaxkd
from jaxkd import data, dense, metrics, models, objectives, training

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data-dir")
data_dir, size = parser.parse_args().data_dir, (64, 80)


def drawn(rng):  # up to three rectangles on a noisy ground, with boxes as TFDS has them: squares, wide and tall ones
    image, kinds, boxes = rng.integers(0, 90, (*size, 3), np.uint8), rng.integers(0, 3, rng.integers(1, 4)), []
    for kind in kinds:
        height, width = ((16, 16), (10, 24), (24, 10))[kind]
        top, left = rng.integers(0, 64 - height), rng.integers(0, 80 - width)
        image[top : top + height, left : left + width] = rng.integers(90, 255, 3)
        boxes.append([top / 64, left / 80, (top + height) / 64, (left + width) / 80])
    return {"image": image, "objects": {"bbox": boxes, "label": kinds}}


def read(split, count):
    made = list(map(drawn, [np.random.default_rng(len(split))] * count))
    arrays = data.dense.arrays(data.source("bccd", split, data_dir) if data_dir else made, max_boxes=40, size=size)
    return {**arrays, "image": arrays["image"].astype(np.float32) / 255}


def detect(outputs):
    return dense.detections(outputs["logits"], outputs["offsets"], anchors, image_size=size)._asdict()


train, test = read("train", 256), read("test", 48)
train["labeled"] = np.arange(len(train["image"])) < 16
batches, held_out = data.Resident(train, 16, drop_remainder=True), data.Resident(test, 16, shuffle=False)
large, small = (models.Detector(3, 3, widths=w, channels=c, stride=8) for w, c in (((12, 24), 24), ((6, 12), 12)))
anchors = dense.anchors(size, small.strides, sizes=[12, 24], ratios=[0.4, 1.0, 1.6])


def train_model(network, teacher, **terms):
    model, adam = jaxkd.adapters.linen(network), optax.adam(optax.cosine_decay_schedule(4e-3, 300))
    kd = jaxkd.distill(model, teacher, jaxkd.combine(**terms), optimizer=adam, metrics=lambda context: {})
    student = training.fit(kd, batches, steps=300, key=jax.random.key(0), progress=False).state.student
    found = list(training.predict(jaxkd.adapters.linen(network, outputs=detect), student, held_out))
    return model, student, {name: np.concatenate([part[name] for part in found]) for name in found[0]}


labels, few = objectives.detection(anchors), objectives.detection(anchors, where="batch/labeled")
taught = train_model(large, jaxkd.teachers.none(), labels=labels)
alone = train_model(small, jaxkd.teachers.none(), labels=few)
distilled = train_model(small, jaxkd.teachers.frozen(*taught[:2]), labels=few, soft=objectives.soft_detections(anchors))

figure, axes = plt.subplots(4, 4, figsize=(10, 8.4), layout="constrained")
shown = {"teacher": taught[2], "student alone": alone[2], "student, distilled": distilled[2]}
for name, found in shown.items():
    print(f"{name:<20} AP50 {100 * metrics.average_precision(found, test)['ap50']:.1f} %")
shown["labels"] = {"boxes": test["boxes"], "labels": test["box_label"], "scores": test["box_mask"]}
for (name, found), column in zip(shown.items(), axes.T, strict=True):
    for number, panel in enumerate(column):
        panel.imshow(test["image"][number])
        panel.set(xticks=[], yticks=[], title=name)
        for n in np.flatnonzero(found["scores"][number] > 0.4):
            (x0, y0, x1, y1), color = found["boxes"][number, n], f"C{found['labels'][number, n]}"
            panel.add_patch(plt.Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=color))
pathlib.Path("runs/examples").mkdir(parents=True, exist_ok=True)
figure.savefig("runs/examples/detector.png", dpi=100)
