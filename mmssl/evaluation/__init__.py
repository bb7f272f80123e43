"""Floor 2: measures of a trained model, and the report. Sees encoders, heads and shards; never the objective.

Rules that all evaluators keep:
    * embeddings and scores are float32, with no autocast and no TF32 (half-precision scores tie, and ties move recalls);
    * the rank of a query is 1 + the wrong candidates that score higher + those that score the same and stand earlier in the
      data: deterministic, and a model that maps everything to one point scores chance;
    * a choice among candidates of one sample, which have no order, earns 1 / t where t of them are equally good; tie rates are
      scores too, and a warning says when they decide;
    * a sample that lacks a modality takes no part and is counted in n_excluded; it is no error;
    * an embedding that is not finite is refused by the key of its sample: `topk` would call it the best match;
    * a value that is not defined is None; every proportion comes with n, chance and a 95 % interval.
"""
