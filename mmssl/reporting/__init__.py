"""Floor 5: the report of a run as one HTML file, its figures and galleries, and its software and hardware environment."""
