"""PQ-MIM: image compression with product-quantized masked image modelling."""

__version__ = "0.1.0"
