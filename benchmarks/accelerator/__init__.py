"""Measurements on an accelerator in one command of at most nine minutes.

Run ``python -m benchmarks.accelerator`` (or ``make accelerator``) on a machine with a GPU or a TPU. It needs JAX, Flax,
optax, orbax, NumPy and the other dependencies of `jaxkd`, and neither TensorFlow Datasets nor tyro nor matplotlib.

Each part runs in a process of its own until its budget ends. It writes its results after each case, so that a process
that is killed loses one case at most; a case that does not fit is reported as not reached. Called again on the same
machine with the same source, the command runs only the cases that have no result yet.

==============  ========================================================================================================
`checks`        losses and gradients against float64 references; placements of one distillation
`composed`      a composed step against a hand-written one: FLOPs, memory, time
`images`        images per second and fraction of peak, float32 and bfloat16, live and cached teachers
`dispatch`      an epoch as one dispatch against one dispatch for each step
`vocabulary`    losses of hidden states for 128,256 words: time and memory beside the losses of logits
`on_policy`     tokens per second of on-policy distillation
`seeds`         whole trainings of CIFAR-100's resnet32x4 → resnet8x4, resumable
==============  ========================================================================================================

``--rehearse`` runs all of them with tiny sizes on a CPU, where the times have no meaning.
"""
