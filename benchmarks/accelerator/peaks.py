"""Peak rates of devices, for the fraction of it that a step reaches."""

from __future__ import annotations

from typing import NamedTuple


class Peak(NamedTuple):
    """Peak of dense matrix products in FLOPs per second, from the manufacturer's data sheet.

    Attributes:
      bf16: of bfloat16, or float16 where a device has no bfloat16.
      f32: of float32 arrays at JAX's default precision: TensorFloat-32 on a GPU that has it, bfloat16 on a TPU.
    """

    bf16: float
    f32: float


def _tera(bf16: float, f32: float) -> Peak:
    return Peak(bf16 * 1e12, f32 * 1e12)


#: by a part of `jax.Device.device_kind`; the first that matches applies. A TPU's is that of one JAX device.
PEAKS: dict[str, Peak] = {
    "B200": _tera(2250, 1125),
    "H200 NVL": _tera(835, 417),
    "H200": _tera(989, 495),
    "GH200": _tera(989, 495),
    "H100 NVL": _tera(835, 417),
    "H100 PCIe": _tera(756, 378),
    "H100": _tera(989, 495),
    "H800": _tera(989, 495),
    "A100": _tera(312, 156),
    "A800": _tera(312, 156),
    "A10G": _tera(70, 35),
    "A10": _tera(125, 62.5),
    "A30": _tera(165, 82),
    "L40S": _tera(362, 183),
    "L4": _tera(121, 60),
    "V100": _tera(125, 15.7),
    "T4": _tera(65, 8.1),
    "RTX 4090": _tera(165, 82.6),
    "RTX 3090": _tera(71, 35.6),
    "TPU7x": _tera(1154, 1154),
    "TPU v6 lite": _tera(918, 918),
    "TPU v5 lite": _tera(197, 197),
    "TPU v5": _tera(459, 459),
    "TPU v4": _tera(275, 275),
    "TPU v3": _tera(61.5, 61.5),
    "TPU v2": _tera(22.5, 22.5),
}


def peak(device_kind: str, dtype: str) -> float | None:
    """Returns the peak of a device for a dtype, or None for a device that is not listed.

    >>> peak("NVIDIA H100 80GB HBM3", "bfloat16") / 1e12, peak("cpu", "float32")
    (989.0, None)
    """
    words = f" {device_kind} "
    for name, found in PEAKS.items():
        if f" {name} " in words or f" {name}-" in words:
            return found.bf16 if dtype == "bfloat16" else found.f32
    return None


def fraction(flops: float | None, seconds: float, device_kind: str, dtype: str) -> float | None:
    """Returns the share of the device's peak that so many FLOPs in so many seconds are, or None."""
    top = peak(device_kind, dtype)
    return None if top is None or not flops or seconds <= 0 else flops / seconds / top
