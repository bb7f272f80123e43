"""Floor 1: heads on top of encoders: projections, batch norm over all processes, decoders."""
