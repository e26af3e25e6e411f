"""Athletes in images: a large pose network teaches a small one, with few labels or with all."""

import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import jaxkd
from experiments.kit import inputs
from experiments.kit.tasks import networks, poses, skeletons
from experiments.kit.tasks.task import Figure, Measure, Method, Task, Training
from jaxkd import data, distillers, objectives, teachers
from jaxkd.types import Distiller, Model, Objective, Teacher, TrainState, Variables

SET = "lspet"
FEW = 0.1  # share of the training images that have labels
LABELED, OTHERS = 8, 16  # images with labels in a batch, and of all images without
TEACHER_STEPS, BATCH, RATE = 2500, 24, 4e-3
TEACHER, STUDENT = ((24, 48, 96), 48), ((8, 16, 32), 16)
SHOWN = (3, 14, 25)  # test images of the figure
WEIGHTS = {"heatmaps": 1.0, "features": 0.002, "structure": 0.02}

HEATMAPS = ("student/heatmaps", "teacher/heatmaps")
LABELS = objectives.pose_heatmaps(HEATMAPS[0], "batch/heatmaps", joint_path="batch/point_mask", where="batch/labeled")


def taught(features: float, structure: float) -> Objective:
    """Returns the labels' objective and that of the teacher."""
    integral = objectives.integral_pose(
        *HEATMAPS,
        student_feature="student/feature",
        teacher_feature="teacher/feature",
        heatmap_weight=WEIGHTS["heatmaps"],
        feature_weight=features,
        structure_weight=structure,
    )
    return jaxkd.combine(labels=LABELS, kd=integral)


PARTS: Mapping[str, Objective] = {
    "student": jaxkd.combine(labels=LABELS),
    "heatmaps": jaxkd.combine(labels=LABELS, kd=objectives.pose_heatmaps(*HEATMAPS, weight=WEIGHTS["heatmaps"])),
    "features": taught(WEIGHTS["features"], 0.0),
    "structure": taught(WEIGHTS["features"], WEIGHTS["structure"]),
}
NOTES = {
    "student": "mean squared error to Gaussian heatmaps of the visible joints",
    "heatmaps": f"and to the teacher's heatmaps of all joints (Zhang 2019), weight {WEIGHTS['heatmaps']:g}",
    "features": f"and of the heads' features behind a 1×1 convolution, weight {WEIGHTS['features']:g}",
    "structure": f"and of the cosines between joints (Xu 2020), weight {WEIGHTS['structure']:g}",
}
TITLES = {
    "student": "student alone",
    "heatmaps": "heatmaps",
    "features": "heatmaps + features",
    "structure": "heatmaps + features + structure",
}


def _methods() -> dict[str, Method]:
    found = {}
    for few in (True, False):
        for part in PARTS:
            name = part if few else "all" if part == "student" else f"all_{part}"
            title = TITLES[part] + (", few labels" if few else ", all labels")
            settings = {"labels": FEW if few else 1.0, "part": part}
            found[name] = Method(title, NOTES[part], settings, baseline="student" if few else "all")
    return found


METHODS = _methods()


class Poses:
    """The opened task."""

    def __init__(self, config: Any, folder: pathlib.Path) -> None:
        self._folder, self.people = folder, poses.read(config, SET)
        self._steps = networks.before(TEACHER_STEPS, config)
        joints = len(self.people.joints)
        self.teacher, self.student = (poses.pose_network(joints, *sizes) for sizes in (TEACHER, STUDENT))

    @functools.cached_property
    def _splits(self) -> dict[str, Any]:
        arrays = self.people.splits["validation"]
        return {"validation": data.Resident(arrays, min(poses.EVAL_BATCH, len(arrays["image"])), shuffle=False)}

    def _inputs(self, few: bool, seed: int) -> Any:
        """Returns batches of labeled images; with few labels, also of all images without their labels."""
        train = self.people.splits["train"]
        count = len(train["image"])
        if not few:
            return data.Resident(_labeled(train, True), min(BATCH, count), seed=seed, drop_remainder=True)
        chosen = np.sort(np.random.default_rng(seed).permutation(count)[: max(round(FEW * count), LABELED)])
        known = {name: value[chosen] for name, value in train.items()} | {"index": chosen.astype(np.int32)}
        others = {**train, "point_mask": np.zeros_like(train["point_mask"])}
        parts = ((_labeled(known, True), LABELED), (_labeled(others, False), OTHERS))
        return inputs.Joined(
            *(
                data.Resident(arrays, min(size, len(arrays["image"])), seed=seed, drop_remainder=True)
                for arrays, size in parts
            )
        )

    def _distill(
        self, student: Model, teacher: Teacher, objective: Objective, rate: float, steps: int, seed: int
    ) -> Distiller:
        measures = functools.partial(poses.found_joints, joints=self.people.joints)
        kd = networks.distill(student, teacher, objective, rate, steps, measures)
        return distillers.preprocess(kd, train_transform=poses.moved(self.people, seed), eval_transform=poses.prepared)

    @functools.cached_property
    def taught(self) -> Variables:
        """The teacher's variables, which is trained once, on all labels."""
        kd = self._distill(self.teacher, teachers.none(), PARTS["student"], RATE, self._steps, 0)
        path = self._folder / "teacher.safetensors"
        return networks.trained_once(path, kd, self._inputs(False, 0), self._splits, steps=self._steps)

    def training(self, method: str, seed: int, steps: int) -> Training:
        settings = METHODS[method].settings
        alone = settings["part"] == "student"
        teacher = teachers.none() if alone else teachers.frozen(self.teacher, self.taught)
        kd = self._distill(self.student, teacher, PARTS[settings["part"]], RATE, steps, seed)
        return Training(kd, self._inputs(settings["labels"] < 1, seed), steps, self._splits)

    def _measured(self, model: Model, variables: Variables) -> dict[str, float]:
        test = self.people.splits["test"]
        found = poses.measured(poses.points_of(model, variables, test), test, self.people.joints)
        return found | {"mflops": poses.flops(model, variables, test) / 1e6}

    def measure(self, method: str, seed: int, state: TrainState) -> Mapping[str, float]:
        return self._measured(self.student, state.student)

    def samples(self, method: str, state: TrainState) -> Sequence[str]:
        return []

    def references(self) -> Mapping[str, Mapping[str, float]]:
        return {"teacher": self._measured(self.teacher, self.taught) | {"parameters": networks.parameters(self.taught)}}

    def shown(self, method: str, state: TrainState) -> dict[str, Any]:
        """Returns the skeletons of some test images."""
        test = self.people.splits["test"]
        some = {name: value[np.array(SHOWN) % len(test["image"])] for name, value in test.items()}
        found = {"points": skeletons.points(poses.points_of(self.student, state.student, some))}
        if method == "student":
            theirs = poses.points_of(self.teacher, self.taught, some)
            found |= skeletons.scene(some["image"], some["points"], some["point_mask"], theirs, self.people)
        return found


def _labeled(arrays: poses.Arrays, known: bool) -> dict[str, np.ndarray]:
    return {**arrays, "labeled": np.full(len(arrays["image"]), known)}


TASK = Task(
    title="Poses of athletes",
    about=(
        "LSPET at 96 × 96 pixels, 14 joints, 5,000 training images. Teacher: a pose network of 271 k parameters and "
        "92 MFLOP an image, trained on all labels. Student: one of 31 k and 11 MFLOP. With few labels, a batch has 8 "
        "of 500 labeled images, each seed its own, and 16 of all images without labels, which the teacher alone "
        "explains; the student alone reads the same batches. Images are scaled, rotated, shifted and mirrored. A joint "
        "is found within a tenth of the longer side of the box around the true joints."
    ),
    measures={
        "pck": Measure("PCK@0.1 (%)", scale=100, digits=1),
        "pck_wide": Measure("PCK@0.2 (%)", scale=100, digits=1),
        "mflops": Measure("MFLOP an image", digits=1, higher=False),
    },
    methods=METHODS,
    steps=1200,
    evaluations=8,
    open=Poses,
    curve="validation/pck",
    rises=True,
    any_set=True,
    figures={
        "skeletons": Figure(
            "Test images: truth, teacher, students",
            functools.partial(skeletons.side_by_side, "skeletons"),
            lambda work, method, state: work.shown(method, state),
        ),
        "joints": Figure("Found joints, one by one (PCK@0.1)", skeletons.joints),
    },
)
