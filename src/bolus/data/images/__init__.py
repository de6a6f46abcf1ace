"""Tables and files joined: the cache, its shards and sources, clips and masks of rows."""
