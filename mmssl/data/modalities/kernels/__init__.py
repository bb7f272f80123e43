"""What synchronized operations mean for the values of the modalities of this package: one file for each kind of value."""
