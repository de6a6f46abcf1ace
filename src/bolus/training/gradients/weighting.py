"""How much each objective counts where its weight is not only the recipe's: by uncertainty, or by gradient norms."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn


class Uncertainty(nn.Module):
    """Weights learnt from the losses themselves: of each objective its weight times `e^-s L + s / 2`.

    Multi-task weighting by homoscedastic uncertainty (Kendall, Gal and Cipolla, arXiv:1705.07115, eq. 10), with s the
    logarithm of an objective's variance, 0 at first. The paper has it for classification; here it stands for every
    loss (inferred). A loss that stays large gets a small weight, in the end half of its inverse.

    Args:
        names: of the objectives.

    Example:
        >>> weights = Uncertainty(["a", "b"])
        >>> weights.weigh("a", torch.tensor(3.0)).item(), float(weights.weight("a"))
        (3.0, 1.0)
    """

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__()
        self._places = {name: place for place, name in enumerate(names)}  # a name may be one that modules have
        self._log_variances = nn.ParameterList(nn.Parameter(torch.zeros(())) for _ in self._places)
        self.register_load_state_dict_pre_hook(self._from_names)  # type: ignore[no-untyped-call]

    def log_variance(self, name: str) -> nn.Parameter:
        """The logarithm of an objective's variance, a scalar."""
        found: nn.Parameter = self._log_variances[self._places[name]]
        return found

    def weigh(self, name: str, loss: Tensor) -> Tensor:
        """A scalar; exactly the loss where that is 0 because there was nothing to do."""
        s = self.log_variance(name).to(loss)
        # A batch with nothing for an objective says nothing of its variance.
        return torch.where(loss.detach() == 0, loss, loss * (-s).exp() + s / 2)

    def weight(self, name: str) -> Tensor:
        """What a loss is multiplied with, a scalar without a gradient."""
        return (-self.log_variance(name).detach()).exp()

    def _from_names(self, _: nn.Module, state: dict[str, Tensor], prefix: str, *others: object) -> None:
        """Take over what an earlier version saved by the objectives' names."""
        for name, place in self._places.items():
            if (old := f"{prefix}log_variance.{name}") in state:
                state[f"{prefix}_log_variances.{place}"] = state.pop(old)


def balanced_weights(gram: Tensor, shares: Sequence[float]) -> Tensor:
    """How much of each gradient goes into their sum, so that their norms stand to each other as the shares do.

    The norms add up to what they were, so a learning rate keeps its meaning. GradNorm (arXiv:1711.02257) aims at such
    norms by learnt weights and lets slow objectives have more; here they hold at every step (ours). A gradient without
    length has no part.

    Args:
        gram: `[M, M]`, inner products of the gradients.
        shares: of each, above 0: the recipe's weights.

    Returns:
        float64 `[M]`.

    Example:
        >>> balanced_weights(torch.tensor([[9.0, 0.0], [0.0, 1.0]]), [1.0, 1.0]).tolist()
        [0.6666666666666666, 2.0]
    """
    norms = gram.double().diagonal().clamp(min=0).sqrt()
    moving = norms > 0
    wanted = torch.as_tensor(shares, dtype=torch.float64, device=gram.device) * moving
    return torch.where(moving, wanted * norms.sum() / wanted.sum().clamp(min=1e-300) / norms.clamp(min=1e-300), 1.0)
