"""Floor 5: the command line, one short file a verb. Every verb is also a module: `python -m pipelines.pretrain RECIPE`."""
