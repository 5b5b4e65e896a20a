"""What may be said of an archive."""
