"""Floor 4: one YAML file becomes a run. Strict reading, cross-field rules, and the objects built from it."""
