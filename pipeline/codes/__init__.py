"""Reading codes for training."""
