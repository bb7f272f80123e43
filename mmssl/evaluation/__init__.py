"""Floor 2: evaluators, which measure a trained model. They use encoders, heads and shards; never the objective.

Rules that all evaluators keep:
    * embeddings and scores are float32, with no autocast and no TF32 (half-precision scores tie, and ties move recalls);
    * the rank of a query is 1 + the wrong candidates that score higher + those that score the same and come earlier in the
      data: deterministic, and a model that maps everything to one point scores chance;
    * a choice among candidates of one sample, or in a pool of several modalities, which have no order, scores 1 / t if t of
      them are equally good; tie rates are scores too, and a warning says when they matter;
    * a sample that lacks a modality is left out and counted in n_excluded; it is no error;
    * an embedding that is not finite is refused, with the key of its sample: `topk` would rank NaN first;
    * an undefined value is None; every proportion has n, chance and a 95 % interval.
"""
