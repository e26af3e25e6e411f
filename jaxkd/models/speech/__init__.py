"""Acoustic models in Flax nnx, and the decoding of their outputs by CTC.

====================  ========================================================================================
models                `AcousticLSTM`, `AcousticCNN`, `Conformer`, each of a configuration: `AcousticLSTMConfig`,
                      `AcousticCNNConfig`, `ConformerConfig`; `SpeechModel` and `SpeechConfig`: what all have
with `adapters.nnx`   `speech_taps`: paths of hidden states; `speech_inputs`: a model's inputs from a batch
decoding              `ctc_greedy` and `ctc_beam_search` give `Transcripts`; `ctc_alignment` of known labels gives an
                      `Alignment`
====================  ========================================================================================
"""

from jaxkd.models.speech._alignment import Alignment, ctc_alignment
from jaxkd.models.speech._beam import ctc_beam_search
from jaxkd.models.speech._cnn import AcousticCNN, AcousticCNNConfig
from jaxkd.models.speech._config import SpeechConfig
from jaxkd.models.speech._conformer import Conformer, ConformerConfig
from jaxkd.models.speech._greedy import Transcripts, ctc_greedy
from jaxkd.models.speech._lstm import AcousticLSTM, AcousticLSTMConfig
from jaxkd.models.speech._model import SpeechModel
from jaxkd.models.speech._taps import speech_inputs, speech_taps

__all__ = [
    "AcousticCNN",
    "AcousticCNNConfig",
    "AcousticLSTM",
    "AcousticLSTMConfig",
    "Alignment",
    "Conformer",
    "ConformerConfig",
    "SpeechConfig",
    "SpeechModel",
    "Transcripts",
    "ctc_alignment",
    "ctc_beam_search",
    "ctc_greedy",
    "speech_inputs",
    "speech_taps",
]
