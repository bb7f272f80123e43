"""Floor 1: what objectives put on top of encoders: projections, the batch norm of their heads, decoders."""
