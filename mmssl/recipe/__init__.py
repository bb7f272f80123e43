"""Floor 4: one YAML file becomes a run. Strict validation, cross-field checks, and the objects built from it."""
