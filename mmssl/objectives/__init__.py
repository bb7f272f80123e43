"""Floor 2: objectives (training losses with their heads). One file each: its config, and the module with encode and criterion."""
