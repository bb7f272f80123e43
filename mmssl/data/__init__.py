"""Floor 1: tar bytes to batches. Reads shards by index, decodes modalities, draws views, and keeps an order that can be resumed."""
