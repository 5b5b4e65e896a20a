"""The batch job: shards of images in, code tables out, each shard committed exactly once."""
