"""Named losses and shared parameters become gradients: the one place where objectives meet in the encoder.

Nothing is wrapped in DistributedDataParallel (see `training.processes`), and gradients stay lists of parameter tensors.
Dimension letters: M objectives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bolus.device import is_shared_out
from bolus.encoders.features import Features
from bolus.recipe import CombinerSpec
from bolus.training.gradients.aggregators import Aggregate, find_aggregator
from bolus.training.gradients.buffers import add_up, gradients_of, gram_of, weighted_sum
from bolus.training.gradients.gradcache import Cut, cut
from bolus.training.gradients.mitigator import Conflicts, mitigation_weights
from bolus.training.gradients.overlap import averaged_gradients
from bolus.training.gradients.weighting import balanced_weights
from bolus.training.processes import all_reduce_mean, all_reduce_sum, world_size


class Combiner:
    """Turns the losses of a step into the gradients of encoder and heads.

    `sum` takes one backward pass. Every other kind takes one for each objective: through the encoder (scope
    `encoder`), or only to its features (scope `features`), where the gradients are reconciled and go on through the
    encoder together. (There, objectives that read different features, such as pooled and grid, never conflict: their
    gradients stand at right angles.) Objectives are reconciled within their branch and the branches added; heads get
    plain sums. With scope `encoder` the gradients of accumulated batches are added, averaged over processes and then
    reconciled, once a step; with scope `features` every batch is reconciled by itself, by the Gram matrix of all
    processes, and goals move with every batch.

    Args:
        spec: which kind, and how.
        shared: parameters in which objectives meet.
        heads: objective -> its own parameters; objectives may share a head.
        branches: objective -> branch; all in one where absent.
        weights: objective -> what its loss is multiplied with, for kind `balanced`; 1 where absent.

    Raises:
        RecipeError: an aggregator that is unknown, or cannot be used with these objectives.

    Example:
        >>> weight = nn.Parameter(torch.tensor([1.0, 1.0]))
        >>> combiner = Combiner(CombinerSpec(kind="pcgrad"), [weight], {"a": [], "b": []})
        >>> combiner.accumulate({"a": weight[0], "b": weight[1] - weight[0]})
        >>> combiner.reconcile()
        >>> weight.grad
        tensor([0.5000, 1.5000])
    """

    def __init__(
        self,
        spec: CombinerSpec,
        shared: Sequence[nn.Parameter],
        heads: Mapping[str, Sequence[nn.Parameter]],
        branches: Mapping[str, str] | None = None,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        self.spec = spec
        self.shared = [parameter for parameter in shared if parameter.requires_grad]
        self.heads = {name: [p for p in own if p.requires_grad] for name, own in heads.items()}
        self._all_heads = list(dict.fromkeys(p for own in self.heads.values() for p in own))
        self._shared_out = any(map(is_shared_out, self.shared))  # then gradients gather in `.grad`, averaged already
        self.branches = {name: (branches or {}).get(name, "image") for name in heads}
        self.weights = {name: (weights or {}).get(name, 1.0) for name in heads}
        self.goals = {
            branch: torch.zeros(len(members), len(members), dtype=torch.float64)
            for branch, members in self._members().items()
            if spec.kind == "grad_mitigator"
        }
        self.conflicts: Conflicts | None = None
        self.skipped = 0  # steps in a row that were not applied
        self._aggregate: Aggregate | None = find_aggregator(spec) if spec.kind == "torchjd" else None
        if self._aggregate is not None:
            for members in self._members().values():
                self._aggregate.check(len(members))
        self._new_goals: dict[str, Tensor] = {}  # of a step that is not known to be applied yet
        self._place = {parameter: place for place, parameter in enumerate(self._all_heads)}
        self.begun = False  # a step, of which gradients are held
        self._averaged = False  # they are, over processes
        self._cut: Cut | None = None  # where the features of the batch were cut from the encoder
        self._seed, self._observing, self._scale = 0, False, 1.0
        self._grams: list[Tensor] = []  # of the step, where it is observed
        self._shared_sum: list[Tensor] = []
        self._heads_sum: list[Tensor] = []
        self._apart: dict[str, list[Tensor]] = {}

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Everything that gets a gradient, each once."""
        return [*self.shared, *self._all_heads]

    def open(self, features: Features | Cut, *, observe: bool = False) -> Features:
        """The features that objectives are to see: as they are, or cut from the encoder.

        Args:
            features: of a batch; they are cut here for scope `features`, and come cut where the batch is in chunks.
            observe: as in `accumulate`.
        """
        cuts = self._shared_out or (self.spec.scope == "features" and self._separate(observe))
        if isinstance(features, Features) and cuts:
            features = cut(features)
        self._cut = features if isinstance(features, Cut) else None
        return features.features if isinstance(features, Cut) else features

    def accumulate(
        self,
        losses: Mapping[str, Tensor],
        *,
        seed: int = 0,
        observe: bool = False,
        loss_scale: float = 1.0,
        last: bool = False,
    ) -> None:
        """Add the gradients of one batch's weighted losses to the buffers.

        Args:
            losses: objective -> scalar, already times its weight and divided by the batches of a step.
            seed: of the batch, for the order of partners.
            observe: keep each objective's gradient apart even where the kind does not need it, so that `reconcile`
                leaves `conflicts`; the same for all batches of a step.
            loss_scale: what a gradient scaler multiplied the losses with; gradients keep it, inner products are freed
                of it.
            last: no batch of this step comes after this one, so that a sum is averaged over processes meanwhile.
        """
        assert set(losses) == set(self.heads), f"losses of {sorted(losses)}, heads of {sorted(self.heads)}"
        self._seed, self._observing, self._scale = seed, observe, loss_scale
        if not self.begun and self._shared_out:
            for parameter in self.shared:
                parameter.grad = None
        self.begun, buffers = True, None if self._shared_out else [self._shared_sum]
        # Losses reach as far as the encoder's parameters, or to where the features were cut from it.
        opened, self._cut = self._cut, None
        ends = self.shared if opened is None else opened.leaves
        if not self._separate(observe):
            total = torch.stack(list(losses.values())).sum()
            if opened is None and last and world_size() > 1:
                held = [*self._shared_sum, *self._heads_sum]
                found = averaged_gradients(total, self.parameters, held)
                self._shared_sum, self._heads_sum = found[: len(ends)], found[len(ends) :]
                self._averaged = True
                return
            found = gradients_of(total, [*ends, *self._all_heads])
            add_up(self._heads_sum, found[len(ends) :])
            if opened is None:
                add_up(self._shared_sum, found[: len(ends)])
            else:
                opened.carry([found[: len(ends)]], self.shared, buffers)
            return
        by_objective, last_name = [], list(self.heads)[-1]
        for name in self.heads:  # objectives that share a head may share what it gave
            found = gradients_of(losses[name], [*ends, *self.heads[name]], keep=name != last_name)
            self._add_heads(name, found[len(ends) :])
            if opened is None:
                add_up(self._apart.setdefault(name, []), found[: len(ends)])
            else:
                by_objective.append(found[: len(ends)])
        if opened is not None and self.spec.scope == "features":
            opened.carry([self._combine_features(by_objective)], self.shared, buffers)
        elif opened is not None:
            assert not self._shared_out, "check_shard"
            opened.carry(by_objective, self.shared, [self._apart.setdefault(name, []) for name in self.heads])

    def reconcile(self) -> None:
        """Average over processes, reconcile, write the gradients to the parameters, and empty the buffers.

        Afterwards `conflicts` holds how the objectives stood to each other, where that was observed. New goals hold
        from `commit` on.
        """
        assert self.begun, "reconcile before accumulate"
        self.begun = False
        if self._shared_out:
            self._shared_sum = [torch.zeros_like(each) if each.grad is None else each.grad for each in self.shared]
        elif self._apart:
            names = list(self.heads)
            for name in names:
                all_reduce_mean(self._apart[name])
            by_objective = [self._apart[name] for name in names]
            gram = sum(gram_of([grads[place] for grads in by_objective]) for place in range(len(self.shared)))
            assert isinstance(gram, Tensor)
            self._shared_sum = self._combine(by_objective, gram)
        elif not self._averaged:
            all_reduce_mean(self._shared_sum)
        if not self._averaged:
            all_reduce_mean(self._heads_sum)
        self._averaged = False
        for parameter, buffer in zip(self.parameters, [*self._shared_sum, *self._heads_sum], strict=True):
            parameter.grad = buffer
        self.conflicts = None
        if self._grams:  # of a batch each with scope features, where each has its share of the loss only
            gram = torch.stack(self._grams).mean(0) * len(self._grams) ** 2
            goals = {branch: values.clone() for branch, values in self.goals.items()}
            self.conflicts = Conflicts(tuple(self.heads), tuple(self.branches.values()), gram, goals)
        self._grams = []
        self._shared_sum, self._heads_sum, self._apart = [], [], {}

    def commit(self, applied: bool = True) -> None:
        """Take over the goals of the step; they stay as they were where it was not applied, as a scaler may decide."""
        self.skipped = 0 if applied else self.skipped + 1
        if applied:
            self.goals.update(self._new_goals)
        self._new_goals = {}

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold, as plain data: the goals, and whose they are."""
        members = self._members()
        return {
            branch: {"objectives": members[branch], "goals": goals.tolist()} for branch, goals in self.goals.items()
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Goals as `state` gave them; branches that it does not know keep theirs."""
        for branch, members in self._members().items():
            if branch in self.goals and branch in state:
                assert list(state[branch]["objectives"]) == members, "goals of other objectives"
                self.goals[branch] = torch.tensor(state[branch]["goals"], dtype=torch.float64)

    def _separate(self, observe: bool) -> bool:
        """Whether each objective has a backward pass of its own; none needs it where nothing is shared."""
        return bool(self.shared) and len(self.heads) > 1 and (observe or self.spec.kind != "sum")

    def _members(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for name, branch in self.branches.items():
            found.setdefault(branch, []).append(name)
        return found

    def _combine_features(self, by_objective: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """The reconciled gradient of one batch's features, by the Gram matrix of all processes."""
        device = self._all_heads[0].device if self._all_heads else self.shared[0].device
        local = torch.zeros(len(self.heads), len(self.heads), dtype=torch.float64, device=device)
        for grads in zip(*by_objective, strict=True):  # none where the samples of this process see frozen encoders only
            local += gram_of(grads)
        # Each process holds its samples' part of the gradient, times the number of processes: see `processes.gather`.
        return self._combine(by_objective, all_reduce_sum(local) / world_size() ** 2)

    def _combine(self, by_objective: Sequence[Sequence[Tensor]], gram: Tensor) -> list[Tensor]:
        """The reconciled gradient from those of the objectives, in the order of `heads`."""
        names = list(self.heads)
        gram = gram.double().cpu() / self._scale**2
        if self._observing:
            self._grams.append(gram)
        weights = torch.ones(len(names), dtype=torch.float64)
        added: list[list[Tensor]] = []
        for branch, members in self._members().items():
            places = torch.tensor([names.index(name) for name in members])
            block = gram[places][:, places]
            whole = self._aggregate is not None and self._aggregate.by_matrix and bool(by_objective[0])
            if self._aggregate is not None and whole and block.isfinite().all():
                weights[places] = 0.0
                added.append(self._aggregate.combine([by_objective[place] for place in places.tolist()], self._seed))
            else:
                weights[places] = self._weigh(branch, block)
        combined = [weighted_sum(parts, weights) for parts in zip(*by_objective, strict=True)]
        for more in added:
            combined = [one + other for one, other in zip(combined, more, strict=True)]
        return combined

    def _weigh(self, branch: str, gram: Tensor) -> Tensor:
        """How much of each gradient of a branch goes into its sum, float64 `[M]`."""
        kind, num_objectives = self.spec.kind, len(gram)
        if kind == "mean":
            return torch.full((num_objectives,), 1 / num_objectives, dtype=torch.float64)
        if kind == "sum" or not gram.isfinite().all():
            return torch.ones(num_objectives, dtype=torch.float64)
        if kind == "balanced":
            return balanced_weights(gram, [self.weights[name] for name in self._members()[branch]])
        if self._aggregate is not None:
            return self._aggregate.weigh(gram, self._seed)
        generator = torch.Generator().manual_seed(self._seed)
        if kind == "pcgrad":
            goals, rate = torch.zeros_like(gram), 0.0
        else:
            goals, rate = self._new_goals.get(branch, self.goals[branch]), self.spec.rate
        weights, goals = mitigation_weights(gram, goals, rate=rate, generator=generator)
        if kind == "grad_mitigator":
            self._new_goals[branch] = goals
        return weights.sum(0)

    def _add_heads(self, name: str, found: Sequence[Tensor]) -> None:
        if not self._heads_sum:
            self._heads_sum = [torch.zeros_like(parameter) for parameter in self._all_heads]
        for parameter, grad in zip(self.heads[name], found, strict=True):
            self._heads_sum[self._place[parameter]] += grad
