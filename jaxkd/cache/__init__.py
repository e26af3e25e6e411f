"""Teacher outputs on disk: computed once, read back by example and view.

===========================  ==========================================================================================
`write_cache`                evaluates a teacher on every example in every view, once
`write_shards`               one writer's share of the same work, for independent processes
`open_cache`                 opens a finished cache without the teacher
`Cache`                      the opened cache: its size, its outputs by example and view, `Cache.decode` for a batch
`attach`                     a loader whose batches carry the encoded outputs, which `jaxkd.teachers.cached` decodes
`codecs`                     which numbers of an output are stored, in how many bits: `full`, `eight_bit`, `top_k`,
                             `packed_top_k`, `sampled`
`StaleCacheError`            raised when teacher, transform, data set or settings are not those of the cache
===========================  ==========================================================================================

A directory holds ``manifest.json`` (identity of the teacher, the data and the settings), ``probes.npz`` (samples of the
transform's and the teacher's results), ``index.npy`` and ``digests.npy`` (which example each row belongs to), and one
folder for each shard, ``shards/000000/`` and so on. A shard holds consecutive rows of one view, one ``.npy`` file for
each field of each output, ``inputs.npy`` (checksums of what the teacher saw) and ``sums.npy`` (checksums of the rows).
Where an output is stored for the tokens of a mask alone, ``mask.npy`` and ``ends.npy`` say where its rows belong.
Every read compares the checksums of its rows; `write_cache` and `attach` to a `jaxkd.data.Resident` read and compare
whole files. Damaged shards are an error, and `write_cache` computes them again.
"""

from jaxkd.cache import codecs
from jaxkd.cache._loaders import attach
from jaxkd.cache._manifest import StaleCacheError
from jaxkd.cache._read import Cache, open_cache
from jaxkd.cache._write import write_cache, write_shards

__all__ = ["Cache", "StaleCacheError", "attach", "codecs", "open_cache", "write_cache", "write_shards"]
