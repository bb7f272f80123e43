"""One-way InfoNCE: each query finds its key among the keys of the batch: the loss of MoCo v3, NNCLR, SimCSE and COLA."""

from __future__ import annotations

from torch import Tensor

from mmssl.core import distributed
from mmssl.losses.candidates import first_hits, positive_indices


def one_way_info_nce(query: Tensor, keys: Tensor, temperature: float, offset: int = 0) -> Tensor:
    """One-way InfoNCE: mean cross entropy of finding the key of a sample among the keys of all, from its query.

    One direction of the symmetric loss of CLIP: keys find no queries. Chen, Xie and He 2021 (MoCo v3, arXiv:2104.02057), equation
    1; Dwibedi et al. 2021 (NNCLR, arXiv:2104.14548), equation 4; Gao et al. 2021 (SimCSE, arXiv:2104.08821), equation 4; Saeed et
    al. 2021 (COLA, arXiv:2010.10915), whose queries a matrix has multiplied. Collapsed embeddings cost ln(G). Slow loop, over the
    rows of one process that has them all::

        def loop(query, keys, temperature):
            loss = 0.0
            for i, q in enumerate(query):
                positive = dot(q, keys[i]) / temperature
                loss += log(sum(exp(dot(q, key) / temperature - positive) for key in keys))
            return loss / len(query)

    Args:
        query: [B, E] rows of this process, float32 or float64; of unit norm except in COLA.
        keys: [G, E] rows of all processes, in the order of ranks; gathered with gradient where they have one.
        temperature: divisor of the products.
        offset: where the keys of this process' queries start among all of them.

    Returns:
        [] this process' share of the mean over the samples of all processes; 0 if there are none.

    Raises:
        ValueError: shapes or offset do not match.
    """
    target = positive_indices(query, keys, offset)
    logits = query @ keys.T / temperature
    return distributed.mean(logits.logsumexp(1) - logits.gather(1, target[:, None])[:, 0])


def one_way_accuracy(query: Tensor, keys: Tensor, offset: int = 0) -> Tensor:
    """This process' share of the accuracy, [] in [0, 1]: how often the own key is the nearest; a tie among n counts 1/n."""
    return distributed.mean(first_hits(query @ keys.T, positive_indices(query, keys, offset)))
