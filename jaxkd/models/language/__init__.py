"""Language models in Flax nnx, and generation with any model.

====================  ========================================================================================
models                `Decoder` (Llama, GPT-2), `Encoder` (BERT, MobileBERT), `EncoderDecoder`, `GatedRecurrence`; each
                      of a configuration: `DecoderConfig`, `EncoderConfig`, `EncoderDecoderConfig`, `RecurrenceConfig`
with `adapters.nnx`   `layer_taps`: paths of hidden states, queries, keys, values and attention; `token_inputs` and
                      `source_inputs`: a model's inputs from a batch
generation            `generate` (greedy, temperature, top-k, top-p) gives `Generated`, `beam_search` gives `Beams`;
                      `generator`: sequences as entries of a batch; `bind`: a module with other variables;
                      `KVCache`: the state of a decoder
====================  ========================================================================================
"""

from jaxkd.models.language._beam import Beams, beam_search
from jaxkd.models.language._cache import KVCache
from jaxkd.models.language._decoder import Decoder, DecoderConfig
from jaxkd.models.language._encoder import Encoder, EncoderConfig
from jaxkd.models.language._encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from jaxkd.models.language._generate import Generated, generate
from jaxkd.models.language._generator import bind, generator
from jaxkd.models.language._recurrence import GatedRecurrence, RecurrenceConfig
from jaxkd.models.language._taps import layer_taps, source_inputs, token_inputs

__all__ = [
    "Beams",
    "Decoder",
    "DecoderConfig",
    "Generated",
    "KVCache",
    "beam_search",
    "bind",
    "generate",
    "generator",
    "layer_taps",
    "token_inputs",
    "Encoder",
    "EncoderConfig",
    "EncoderDecoder",
    "EncoderDecoderConfig",
    "GatedRecurrence",
    "RecurrenceConfig",
    "source_inputs",
]
