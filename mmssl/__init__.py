"""mmssl: pretrain multimodal contrastive models on WebDataset shards, and evaluate them honestly."""

__version__ = "0.1.0"
