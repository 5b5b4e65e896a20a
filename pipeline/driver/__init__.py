"""Many shards over many replicas."""
