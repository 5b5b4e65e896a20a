"""One shard through one replica."""
