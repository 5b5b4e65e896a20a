"""What an archive is, and exactly once."""
