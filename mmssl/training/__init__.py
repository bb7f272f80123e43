"""Floor 3: the loop and what a run is made of. Knows the learner, and no modality, loss or data set by name."""
