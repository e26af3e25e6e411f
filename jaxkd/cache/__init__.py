"""Teacher outputs on disk: computed once, read back by example and augmentation view.

======================  ==============================================================================================
`codecs`                what is kept of an output: `full`, `eight_bit`, `top_k`
`write`                 `write_cache`, `write_shards`: every example in every view through the teacher, once
`read`                  `open_cache`, and `Cache`: size and time, outputs by example and view, `attach`
`attach`                inputs whose batches carry the outputs
`program`               the teacher as one compiled program
`shards`                the files: plain ``.npy``, each shard whole or not there
`manifest`, `compare`   what a cache was made from, and where that differs: `StaleCacheError`
`examples`, `probes`    digests of examples; what a transform and a teacher do to a few of them
======================  ==============================================================================================

A directory holds ``manifest.json``, ``probes.npz``, ``index.npy`` and ``digests.npy`` (which example each row is), and
``shards/000000/`` and so on, with one ``.npy`` file for each field of each output, rows in the order of the set.
"""

from jaxkd.teachers.cache import codecs
from jaxkd.teachers.cache.manifest import StaleCacheError
from jaxkd.teachers.cache.read import Cache, open_cache
from jaxkd.teachers.cache.write import write_cache, write_shards

__all__ = ["Cache", "StaleCacheError", "codecs", "open_cache", "write_cache", "write_shards"]
