"""Floor 2: what is learned. One file an objective: its Config and, beside it, the module in two halves, encode and criterion."""
