"""From recordings and a recipe to a quantized network."""
