"""Floor 2: the synthetic data sets of `mmssl quickstart`: digits that stand and move, land from above, electrocardiograms."""
