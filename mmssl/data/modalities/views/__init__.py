"""Views of the modalities of this package: values to tensors, by parameters that are drawn for each sample."""
