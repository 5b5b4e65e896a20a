"""Training the entropy model on an archive."""
