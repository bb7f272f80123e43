"""wav2vec 2.0: contrast of masked frames with their quantised features within a sample, and the diversity of codes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.core import distributed


def masked_contrast(context: Tensor, quantised: Tensor, codes: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Cross entropy of finding the quantised features of a masked frame among those of all masked frames of its sample.

    Baevski et al. 2020 (arXiv:2006.11477), equation 3; all other masked frames are distractors, where the paper draws 100, but for
    those of the same codes. Slow loop::

        def loop(context, quantised, codes, temperature):
            samples = []
            for c, q, k in zip(context, quantised, codes):
                costs = []
                for i in range(len(c)):
                    others = [j for j in range(len(c)) if j == i or k[j] != k[i]]
                    scores = {j: dot(unit(c[i]), unit(q[j])) / temperature for j in others}
                    costs.append(log(sum(exp(s) for s in scores.values())) - scores[i])
                samples.append(mean(costs))
            return samples

    Args:
        context: [B, M, E] float32 or float64, of the M masked frames of each sample.
        quantised: [B, M, E].
        codes: [B, M] int64, equal where quantised features are.
        temperature: divisor of the cosines.

    Returns:
        Mean over the masked frames of each sample, [B], and the accuracy, [B] (detached). A frame whose distractors all have its
        codes is told by nothing: it counts 1 / M, so that collapsed codes are at chance.
    """
    scores = F.normalize(context, dim=-1) @ F.normalize(quantised, dim=-1).mT / temperature  # [B, M, M]
    own = torch.eye(scores.shape[1], dtype=torch.bool, device=scores.device)
    same = (codes[:, :, None] == codes[:, None]) & ~own
    scores = scores.masked_fill(same, -torch.inf)
    right = torch.arange(scores.shape[1], device=scores.device).expand(len(scores), -1)
    rows = F.cross_entropy(scores.flatten(0, 1), right.flatten(), reduction="none")
    costs = rows.view(right.shape)  # on CUDA the kernel of scores with three axes is not deterministic
    told = (scores.detach().argmax(-1) == right).to(costs.dtype)
    return costs.mean(1), torch.where((same | own).all(-1), 1 / scores.shape[1], told).mean(1)


def code_perplexity(sums: Tensor, counts: Tensor) -> Tensor:
    """Perplexity of the mean code probabilities of each group over all frames of all processes, [G], from 1 to V. A collective.

    Args:
        sums: [n, G, V] probabilities, summed over the frames of each sample.
        counts: [n], number of its frames.
    """
    totals = distributed.total(torch.cat([sums.sum(0).flatten(), counts.sum().to(sums.dtype)[None]]))
    shares = totals[:-1].view(sums.shape[1:]) / totals[-1].detach().clamp(min=1)
    return torch.exp(-(shares * (shares + 1e-7).log()).sum(-1))


def code_diversity(perplexity: Tensor, codes: int) -> Tensor:
    """Loss of unused codes, (GV - sum of the perplexities of G groups) / GV: 0 if all are used alike, (GV - G) / GV at collapse.

    Baevski et al. 2020 (arXiv:2006.11477), equation 4, as in the code (fairseq).
    """
    return 1 - perplexity.sum() / (len(perplexity) * codes)
