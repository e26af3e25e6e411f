"""Recordings: sets, strings of recordings, noise and speed, log-mel features.

===============  =====================================================================================================
reading          `recordings`: any set of audio, such as one of `jaxkd.data.source`, as one array; `hold_out`: the
                 examples with given values, such as those of a speaker, apart from all others
loaders          `Concatenated`: strings of recordings with their transcripts, made on the device; `jaxkd.data.Resident`
                 takes the recordings themselves
transforms       `add_noise`, `change_speed`: random by example, on the device, replayable
features         `log_mel` gives `LogMel`, energies of mel bands, in the step or in an exported program
===============  =====================================================================================================

Entries of a batch, beside those of `jaxkd.data`:

================  ============================  ====================================================================
``audio``         float32 ``[batch, samples]``  samples from -1 to 1, 0 for padding
``audio_length``  int32 ``[batch]``             number of samples without padding
``label``         int32                         class of a recording ``[batch]``, or of a string's ``[batch, parts]``
``label_mask``    bool ``[batch, parts]``       False for the parts that a string does not have
``parts``         int32 ``[batch, parts]``      ``index`` of the recordings of a string
================  ============================  ====================================================================
"""

from jaxkd.data.audio._augment import add_noise, change_speed
from jaxkd.data.audio._concatenated import Concatenated
from jaxkd.data.audio._features import LogMel, log_mel
from jaxkd.data.audio._sets import hold_out, recordings

__all__ = ["Concatenated", "LogMel", "add_noise", "change_speed", "hold_out", "log_mel", "recordings"]
