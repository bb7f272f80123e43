"""Floor 2: the embedded data sets that `mmssl quickstart` makes: scenes of handwritten digits, still and moving."""
