"""Floor 2: what `mmssl shards` and `mmssl bench data` do: pack, check, count, measure the loader."""
