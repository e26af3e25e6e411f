"""The memory that a process keeps between steps."""

import ctypes
import platform

# Parameters of mallopt in glibc's malloc.h, in the order in which they are set.
_SETTINGS = {
    -8: 1,  # M_ARENA_MAX: one heap for all threads, since the heaps of threads are limited to 64 MiB
    -4: 0,  # M_MMAP_MAX: large arrays come from the heap, too
    -1: -1,  # M_TRIM_THRESHOLD: the end of the heap is never given back
}


def keep_freed_memory() -> bool:
    """Keeps the memory that a step frees for the next one, on Linux.

    XLA on CPUs takes the temporary memory of a program anew in each execution. glibc gives arrays of more than 32 MiB
    back to the system at once, and the system fills each page with zeros before it is used again, which takes
    some 60 ms of a step with 70 MiB (`benchmarks.freed_memory`). With this setting the memory stays with the
    process until it ends, no number changes, and a GPU's memory is not concerned. It holds for the whole process,
    PyTorch and NumPy included. Call it before the first computation, since threads keep the heaps that they have.

    Returns:
      Whether it is set; False without glibc, where nothing is changed.

    >>> keep_freed_memory() == (platform.libc_ver()[0] == "glibc")
    True
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all([mallopt(parameter, value) == 1 for parameter, value in _SETTINGS.items()])
