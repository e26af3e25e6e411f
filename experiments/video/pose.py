"""Poses in clips: a large network of each frame, a small one, and dynamic kernels from frame to frame."""

import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import jaxkd
from experiments.kit import plots
from experiments.kit.tasks import networks, poses, skeletons
from experiments.kit.tasks.task import Figure, Measure, Method, Task, Training
from jaxkd import adapters, data, distillers, models, objectives, teachers, wrappers
from jaxkd.objectives.discriminators import cnn
from jaxkd.types import Distiller, Model, Objective, Teacher, TrainState, Variables

SET = "jhmdb_pose"
FRAMES = 5  # of a clip
BATCH, RATE, TEACHER_STEPS = 8, 3e-3, 1200
EVAL_BATCH = 10  # clips
LARGE, SMALL = ((24, 48, 96), 48), ((8, 16, 32), 16)
DYNAMIC: Mapping[str, Any] = {
    "widths": (8, 8, 16),
    "channels": 16,
    "kernel_size": 7,
    "initializer_widths": (16, 32, 64),
    "initializer_channels": 32,
}
SHOWN = (20, 21)  # test clips of the film strip, one after the other
TEMPORAL_WEIGHT = 1e-3

HEATMAPS, TRUE, VISIBLE = ("student/heatmaps", "teacher/heatmaps"), "batch/heatmaps", "batch/point_mask"
LABELS = objectives.pose_heatmaps(HEATMAPS[0], TRUE, joint_path=VISIBLE)
KD = objectives.pose_heatmaps(*HEATMAPS)
TEMPORAL = objectives.temporal_adversarial(
    HEATMAPS[0], TRUE, joint_path=VISIBLE, discriminator=cnn(16, 32), weight=TEMPORAL_WEIGHT
)
PARTS: Mapping[str, Objective] = {
    "student": jaxkd.combine(labels=LABELS),
    "student_kd": jaxkd.combine(labels=LABELS, kd=KD),
    "dynamic": jaxkd.combine(labels=LABELS),
    "dynamic_temporal": jaxkd.combine(labels=LABELS, temporal=TEMPORAL),
    "dynamic_kd": jaxkd.combine(labels=LABELS, kd=KD),
    "dynamic_temporal_kd": jaxkd.combine(labels=LABELS, temporal=TEMPORAL, kd=KD),
}
_GAME = f"and a game with the changes between true frames, weight {TEMPORAL_WEIGHT:g}"
_TAUGHT = "and to the large network's heatmaps of each frame, weight 1"
METHODS = {
    "student": Method("small network of each frame", "mean squared error to Gaussian heatmaps"),
    "student_kd": Method("small network + heatmaps", _TAUGHT),
    "dynamic": Method("dynamic kernels", "the kernels of a frame from the frame before (Nie 2019)", student="dynamic"),
    "dynamic_temporal": Method("dynamic kernels + temporal", _GAME, student="dynamic", baseline="dynamic"),
    "dynamic_kd": Method("dynamic kernels + heatmaps", _TAUGHT, student="dynamic", baseline="dynamic"),
    "dynamic_temporal_kd": Method(
        "dynamic kernels + temporal + heatmaps", f"{_GAME}, {_TAUGHT}", student="dynamic", baseline="dynamic"
    ),
}


def clips(arrays: poses.Arrays, frames: int = FRAMES) -> dict[str, np.ndarray]:
    """Returns pieces of consecutive frames, one after the other without overlap, ``[pieces, frames, ...]``.

    Frames are sorted by clip and number; what remains at the end of a clip, or before a missing frame, is left out.
    """
    if missing := [name for name in ("clip", "frame") if name not in arrays]:
        raise ValueError(f"expected a set of videos, with the entries 'clip' and 'frame'; {missing} are missing.")
    order = np.lexsort((arrays["frame"], arrays["clip"]))
    clip, frame = arrays["clip"][order], arrays["frame"][order]
    breaks = np.flatnonzero((np.diff(clip) != 0) | (np.diff(frame) != 1)) + 1
    rows = [
        run[start : start + frames]
        for run in np.split(order, breaks)
        for start in range(0, len(run) - frames + 1, frames)
    ]
    if not rows:
        raise ValueError(f"expected {frames} consecutive frames of a clip, got none.")
    index = np.stack(rows)
    found = {name: arrays[name][index] for name in ("image", "points", "point_mask")}
    return found | {"clip": arrays["clip"][index[:, 0]], "index": np.arange(len(index), dtype=np.int32)}


class Videos:
    """The opened task."""

    def __init__(self, config: Any, folder: pathlib.Path) -> None:
        self._folder, self.people = folder, poses.read(config, SET, group="clip")
        self._steps = networks.before(TEACHER_STEPS, config)
        self._clips = {split: clips(arrays) for split, arrays in self.people.splits.items()}
        joints = len(self.people.joints)
        self.teacher = wrappers.by_frame(poses.pose_network(joints, *LARGE))
        dynamic = models.DynamicKernels(joints=joints, stride=poses.STRIDE, **DYNAMIC)
        small = wrappers.by_frame(poses.pose_network(joints, *SMALL))
        self.students = {"student": small, "dynamic": adapters.linen(dynamic)}

    @functools.cached_property
    def _splits(self) -> dict[str, Any]:
        held = self._clips["validation"]
        return {"validation": data.Resident(held, min(EVAL_BATCH, len(held["image"])), shuffle=False)}

    def _inputs(self, seed: int) -> data.Resident:
        train = self._clips["train"]
        return data.Resident(train, min(BATCH, len(train["image"])), seed=seed, drop_remainder=True)

    def _distill(self, student: Model, teacher: Teacher, objective: Objective, steps: int, seed: int) -> Distiller:
        measures = functools.partial(poses.found_joints, joints=self.people.joints)
        kd = networks.distill(student, teacher, objective, RATE, steps, measures)
        moved = poses.moved(self.people, seed)
        return distillers.preprocess(kd, train_transform=moved, eval_transform=poses.prepared)

    @functools.cached_property
    def taught(self) -> Variables:
        """The large network's variables, which is trained once, frame by frame."""
        kd = self._distill(self.teacher, teachers.none(), PARTS["student"], self._steps, 0)
        path = self._folder / "teacher.safetensors"
        return networks.trained_once(path, kd, self._inputs(0), self._splits, steps=self._steps)

    def training(self, method: str, seed: int, steps: int) -> Training:
        teacher = teachers.frozen(self.teacher, self.taught) if method.endswith("kd") else teachers.none()
        kd = self._distill(self.students[METHODS[method].student], teacher, PARTS[method], steps, seed)
        return Training(kd, self._inputs(seed), steps, self._splits)

    def _points(self, model: Model, variables: Variables, some: poses.Arrays) -> np.ndarray:
        return poses.points_of(model, variables, some, EVAL_BATCH)

    def _measured(self, model: Model, variables: Variables) -> dict[str, float]:
        test = self._clips["test"]
        found = poses.measured(self._points(model, variables, test), test, self.people.joints)
        return found | {"mflops": poses.flops(model, variables, test) / 1e6}

    def measure(self, method: str, seed: int, state: TrainState) -> Mapping[str, float]:
        return self._measured(self.students[METHODS[method].student], state.student)

    def samples(self, method: str, state: TrainState) -> Sequence[str]:
        return []

    def references(self) -> Mapping[str, Mapping[str, float]]:
        size = {"parameters": networks.parameters(self.taught)}
        return {"large network of each frame": self._measured(self.teacher, self.taught) | size}

    def shown(self, method: str, state: TrainState) -> dict[str, Any]:
        """Returns the skeletons of the frames of some test clips."""
        test = self._clips["test"]
        rows = np.array(SHOWN) % len(test["image"])
        some = {name: value[rows] for name, value in test.items()}
        shape = (-1, len(self.people.joints), 2)
        mine = self._points(self.students[METHODS[method].student], state.student, some).reshape(shape)
        found = {"points": skeletons.points(mine)}
        if method == "student":
            theirs = self._points(self.teacher, self.taught, some).reshape(shape)
            images, visible = (some[name].reshape(-1, *some[name].shape[2:]) for name in ("image", "point_mask"))
            found |= skeletons.scene(images, some["points"].reshape(shape), visible, theirs, self.people)
        return found


def against_cost(results: Mapping[str, Any]) -> bytes:
    """Draws PCK against the FLOPs of a frame, with intervals over seeds."""
    with plots.figure(1, 1, 8.5, 4.6) as (figure, axes, save):
        for title, found in results["references"].items():
            axes.plot(found["mflops"], 100 * found["pck"], "*", color=plots.ALONE, markersize=11, label=title)
        rows = [one for name, one in results["rows"].items() if "@" not in name]
        for number, one in enumerate(rows):
            cost, share = (one["measures"].get(name) for name in ("mflops", "pck"))
            if cost is None or share is None or share["mean"] is None:
                continue
            half = None if share["half"] is None else 100 * share["half"]
            style = plots.numbered(number) | {"linestyle": ""}
            axes.errorbar(cost["mean"], 100 * share["mean"], yerr=half, capsize=4, label=one["title"], **style)
        axes.set(xlabel="MFLOP a frame", ylabel="PCK@0.1 (%)", xscale="log")
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            figure.legend(loc="outside right center", frameon=False, fontsize=9)
        return save()


TASK = Task(
    title="Poses in videos",
    about=(
        "Clips of JHMDB at 96 × 96 pixels, 15 joints, in pieces of 5 consecutive frames; a tenth of the training clips "
        "is held out to validate on. It is not the official split, and numbers are not comparable with published ones. "
        "Teacher: a pose network of 271 k parameters and 92 MFLOP, which reads each frame alone. Students: a pose "
        "network of 31 k parameters and 11 MFLOP a frame, and dynamic kernels, which read the first frame with a "
        "network of 42 MFLOP and every other one with 10. All frames of a clip are scaled, rotated, shifted and "
        "mirrored alike. A joint is found within a tenth of the longer side of the box around the true joints."
    ),
    measures={
        "pck": Measure("PCK@0.1 (%)", scale=100, digits=1),
        "pck_wide": Measure("PCK@0.2 (%)", scale=100, digits=1),
        "mflops": Measure("MFLOP a frame", digits=1, higher=False),
    },
    methods=METHODS,
    steps=500,
    evaluations=5,
    open=Videos,
    curve="validation/pck",
    rises=True,
    any_set=True,
    figures={
        "film": Figure(
            "Frames of test clips: truth, teacher, students",
            functools.partial(skeletons.film, "film"),
            lambda work, method, state: work.shown(method, state),
        ),
        "cost": Figure("Found joints against the FLOPs of a frame", against_cost),
        "joints": Figure("Found joints, one by one (PCK@0.1)", skeletons.joints),
    },
)
