"""Grids of codes to bytes, and back."""
