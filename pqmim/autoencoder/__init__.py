"""Pixels to latent to codes, and back: the PQ-VAE."""
