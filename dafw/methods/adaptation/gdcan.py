"""GDCAN: generalized domain conditioned adaptation network."""

from typing import Literal

import torch

from dafw.data.batch import Batch
from dafw.methods.adaptation.dcan import DCAN
from dafw.methods.base import Losses
from dafw.nn.attention import GatedDomainAttention, convert_attention, domain_attentions
from dafw.nn.network import Network
from dafw.problems.model import NetworkBase


class GDCAN(DCAN):
    """DCAN with separate attention only in modules in which the two domains differ.

    Loss: that of :class:`~dafw.methods.adaptation.dcan.DCAN`. In every training step each attention module compares
    the domains' pooled inputs (n_s, C) and (n_t, C) of all ranks. r = mean / sqrt(variance + 1e-5) is taken over all
    entries of a domain. If tanh(|r_s - r_t| / |r_t|) is below ``eta``, the target uses the source's squeeze. Evaluation
    uses the last decision, which is part of a checkpoint.

    Li et al., Generalized Domain Conditioned Adaptation Network, TPAMI 2021, https://arxiv.org/abs/2103.12339. The
    statistics were read in the authors' code. That the paper's denominator is |r_t| is unsure. The code's is r_t, which
    is negative for most inputs of an attention module, and then the paths are always shared.

    Args:
        network: images (N, C, H, W) to features (N, d) and logits (N, K); must have squeeze-and-excitation.
        eta: paths are shared if the gap is below this (authors: 0.2).
        mode: ``authors`` divides the gap by r_t with its sign, and repeats their code as DCAN's ``mode`` does.
        base: see :class:`~dafw.methods.adaptation.dcan.DCAN`.
    """

    def __init__(  # type: ignore[no-untyped-def]
        self, network: Network, *, eta: float = 0.2, mode: Literal["paper", "authors"] = "paper", **base
    ) -> None:
        self.eta, self.mode = eta, mode
        super().__init__(network, mode=mode, **base)

    def condition(self, network: NetworkBase) -> None:
        """Gives attention a path for each domain, behind gates."""
        convert_attention(network, gated=True, threshold=self.eta, form=self.mode)

    def losses(self, batch: Batch) -> Losses:
        """DCAN's terms; also logs the share of modules in which the domains share a path."""
        terms = super().losses(batch)
        if self.logs_this_step:
            gates = [part.shared for part in domain_attentions(self.network) if isinstance(part, GatedDomainAttention)]
            self.diagnose("shared_paths", torch.stack(gates).float().mean())
        return terms
