"""Floor 2: the synthetic data sets of `mmssl quickstart`: scenes of handwritten digits, still and moving."""
