"""Poses: sets of images with key points, how networks see them, and how many joints they find."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments.kit import inputs
from experiments.kit.recipe import Transform
from experiments.kit.rows import cost
from jaxkd import adapters, data, dense, metrics, models, training
from jaxkd.types import Batch, Context, Metrics, Model, Variables

SIZE = (96, 96)  # of all images: those of another size are resized
STRIDE, SIGMA = 4, 1.0  # of heatmaps; the standard deviation is in positions of the heatmap
RADIUS = 0.1  # of a correct joint, as a share of the longer side of the box around the true joints
WIDE = 0.2
MEAN, STD = (0.47, 0.45, 0.42), (0.25, 0.25, 0.26)
HELD_OUT = 0.1  # of the training images, where the set has no split to validate on
EVAL_BATCH = 50
MOVES: Mapping[str, Any] = {"scale": (0.8, 1.25), "rotation": 30.0, "shift": 0.06}

LSPET = (
    *("right ankle", "right knee", "right hip", "left hip", "left knee", "left ankle", "right wrist"),
    *("right elbow", "right shoulder", "left shoulder", "left elbow", "left wrist", "neck", "head"),
)
JHMDB = (
    *("neck", "belly", "face", "right shoulder", "left shoulder", "right hip", "left hip", "right elbow"),
    *("left elbow", "right knee", "left knee", "right wrist", "left wrist", "right ankle", "left ankle"),
)
JOINTS = {"lspet": LSPET, "jhmdb_pose": JHMDB}
LIMBS = (("shoulder", "elbow"), ("elbow", "wrist"), ("hip", "knee"), ("knee", "ankle"))
TRUNK = (("head", "neck"), ("face", "neck"), ("neck", "belly"))

TRUE = {"points": 2, "point_mask": 1}  # entries of the true joints, with the rank of an example

Arrays = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class People:
    """A set of poses."""

    name: str  # name of the set
    joints: tuple[str, ...]  # names of the joints, or their numbers where they are not known
    splits: Mapping[str, Arrays]  # train, validation and test

    @property
    def swap(self) -> tuple[tuple[int, int], ...]:
        """Pairs of joints that a mirrored image exchanges; none where names are not known."""
        return pairs(self.joints)

    @property
    def bones(self) -> tuple[tuple[int, int], ...]:
        """Pairs of joints between which a line is drawn; none where names are not known."""
        lines = list(TRUNK)
        for side in ("left", "right"):
            lines += [(f"{side} {a}", f"{side} {b}") for a, b in LIMBS]
            upper = "belly" if "belly" in self.joints else f"{side} shoulder"
            lines += [("neck", f"{side} shoulder"), (upper, f"{side} hip")]
        known = {name: i for i, name in enumerate(self.joints)}
        return tuple((known[a], known[b]) for a, b in lines if a in known and b in known)


def pairs(joints: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """Returns the left and right joints of each pair, by their names.

    >>> pairs(("left hip", "neck", "right hip")), pairs(("0", "1"))
    (((0, 2),), ())
    """
    known = {name: i for i, name in enumerate(joints)}
    others = {name: name.replace("left", "right") for name in known if name.startswith("left")}
    return tuple((known[name], known[other]) for name, other in others.items() if other in known)


def read(config: Any, name: str, *, group: str | None = None) -> People:
    """Returns a set of poses with the splits train, validation and test, of ``--dataset`` or else of a name.

    Where the set lacks a split to test on, its validation split is the test split; where it lacks one to validate on, a
    tenth of the training images is held out, whole groups of equal ``group``.
    """
    name = config.dataset or name
    if config.data_dir is None:
        raise ValueError(f"--data-dir: expected the folder of prepared TFDS sets, with {name}.")
    splits = {"train": _arrays(name, "train", config)}
    for split in ("validation", "test"):
        try:
            found = _arrays(name, split, config)
        except _NoSplit:
            continue
        if "points" in found and found["point_mask"].any():  # the labels of a test split may be hidden
            splits[split] = found
    if "points" not in splits["train"]:
        raise ValueError(
            f"{name}: expected key points, an entry 'keypoints' [joints, 2], got {sorted(splits['train'])}."
        )
    if "test" not in splits and "validation" in splits:
        splits["test"] = splits.pop("validation")
    for missing, seed in (("test", 2), ("validation", 1)):
        if missing not in splits:
            splits["train"], splits[missing] = _held_out(splits["train"], group, seed)
    count = splits["train"]["points"].shape[1]
    if wrong := {split: x["points"].shape[1] for split, x in splits.items() if x["points"].shape[1] != count}:
        raise ValueError(f"{name}: expected {count} joints in every split, as in train, got {wrong}.")
    names = JOINTS.get(name.split(":")[0], ())
    return People(name, names if len(names) == count else tuple(map(str, range(count))), splits)


class _NoSplit(Exception):
    """A set has no split of some name."""


def _arrays(name: str, split: str, config: Any) -> dict[str, np.ndarray]:
    try:
        source = data.source(name, split, config.data_dir)
    except ValueError as error:
        if split == "train":
            raise
        raise _NoSplit from error
    found = data.dense.arrays(inputs.numbered(source, "clip"), size=SIZE)
    if found["image"].shape[-1] == 1:
        found["image"] = np.repeat(found["image"], 3, axis=-1)  # gray
    kept = ("image", "points", "point_mask", "clip", "frame")
    return {entry: found[entry] for entry in kept if entry in found}


def _held_out(arrays: Arrays, group: str | None, seed: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Returns the training images that remain, and those that are held out."""
    groups = arrays[group] if group is not None and group in arrays else np.arange(len(arrays["image"]))
    known = np.unique(groups)
    if len(known) < 2:
        raise ValueError(
            f"expected at least 2 images or clips to train on, of which some are held out, got {len(known)}."
        )
    chosen = np.random.default_rng(seed).permutation(known)[: max(round(HELD_OUT * len(known)), 1)]
    held = np.isin(groups, chosen)
    return tuple({name: value[rows] for name, value in arrays.items()} for rows in (~held, held))  # type: ignore[return-value]


def prepared(batch: Batch) -> dict[str, Any]:
    """Returns a batch of normalized images or clips, and the heatmaps of their visible joints."""
    image = batch["image"]
    normalized = data.normalize({"image": image.reshape(-1, *image.shape[-3:])}, mean=MEAN, std=STD)["image"]
    size = (-(-image.shape[-3] // STRIDE), -(-image.shape[-2] // STRIDE))
    heatmaps = dense.draw_heatmaps(batch["points"], size, SIGMA, stride=STRIDE, joint_where=batch["point_mask"])
    return {**batch, "image": normalized.reshape(image.shape), "heatmaps": heatmaps}


def moved(people: People, seed: int) -> Transform:
    """Returns the augmentation of training images or clips: scale, rotation, shift, mirrors where pairs are known."""

    def transform(batch: Batch) -> dict[str, Any]:
        changed = data.dense.random_affine(batch, seed=seed, flip=bool(people.swap), swap=people.swap, **MOVES)
        return prepared(changed)

    return transform


def pose_network(joints: int, widths: Sequence[int], channels: int) -> Model:
    """Returns a pose network of images."""
    return adapters.linen(models.PoseNetwork(joints=joints, widths=tuple(widths), channels=channels, stride=STRIDE))


def with_points(model: Model) -> Model:
    """Returns a model with the points and scores of its heatmaps, of images or of clips."""

    def apply(variables: Variables, batch: Batch, **options: Any) -> Any:
        outputs, state = model.apply(variables, batch, **options)
        return dense.peaks(outputs["heatmaps"], stride=STRIDE)._asdict(), state

    return model._replace(apply=apply)


def found_joints(context: Context, joints: Sequence[str]) -> Metrics:
    """Returns PCK of the points of images or clips: the mean over joints, each joint, and with a larger radius."""
    points = dense.peaks(context.student["heatmaps"], stride=STRIDE).points
    examples = points.size // (points.shape[-2] * 2)
    batch = {name: context.batch[name].reshape(examples, *points.shape[-2:][:rank]) for name, rank in TRUE.items()}
    if "mask" in context.batch:
        mask = context.batch["mask"]
        batch["mask"] = jnp.repeat(mask, examples // len(mask))
    outputs = {"points": points.reshape(batch["points"].shape)}
    return _pck(Context(outputs, {}, batch, context.step, context.axis_name), joints)


def _pck(context: Context, joints: Sequence[str]) -> dict[str, Any]:
    wide = metrics.keypoints(context, radius=WIDE, reference="extent", joint_names=joints)
    found = metrics.keypoints(context, radius=RADIUS, reference="extent", joint_names=joints)
    return {**found, "pck_wide": wide["pck"]}


def points_of(model: Model, variables: Variables, arrays: Arrays, batch_size: int = EVAL_BATCH) -> np.ndarray:
    """Returns the points that a model finds in images or clips, in pixels."""
    seen = with_points(model)

    def apply(variables: Variables, batch: Batch, **options: Any) -> Any:
        return seen.apply(variables, prepared(batch), **options)

    loader = data.Resident(arrays, min(batch_size, len(arrays["image"])), shuffle=False)
    return np.concatenate([found["points"] for found in training.predict(Model(model.init, apply), variables, loader)])


def measured(points: np.ndarray, arrays: Arrays, joints: Sequence[str]) -> dict[str, float]:
    """Returns PCK of the points of all images or clips of a split."""
    shape = (-1, *points.shape[-2:])
    batch = {"points": arrays["points"].reshape(shape), "point_mask": arrays["point_mask"].reshape(shape[:2])}
    context = Context({"points": jnp.asarray(points.reshape(shape))}, {}, batch, 0)
    return {name: value for name, value in metrics.compute(_pck(context, joints)).items() if np.isfinite(value)}


def flops(model: Model, variables: Variables, arrays: Arrays) -> float:
    """Returns the FLOPs of a forward pass of one image or frame."""
    one = prepared({name: jnp.asarray(value[:1]) for name, value in arrays.items()})
    frames = one["heatmaps"].size // int(np.prod(one["heatmaps"].shape[-3:]))
    apply = functools.partial(model.apply, key=None, train=False)
    return cost.flops(lambda v, x: apply(v, {"image": x})[0]["heatmaps"], variables, one["image"]) / frames
