"""Speech recognisers by name: a Hub id, a local folder, or a model that comes in a wheel."""

from sottovoce.models.base import AWQMapping, Batch, Layer, SpeechModel
from sottovoce.models.load import FAMILIES, load_model

__all__ = ["FAMILIES", "AWQMapping", "Batch", "Layer", "SpeechModel", "load_model"]
