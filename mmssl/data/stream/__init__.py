"""Training batches: which samples in which order, rows, collate, workers. Nothing below imports it."""
