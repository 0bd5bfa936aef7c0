"""Trainers for PPO and GRPO on stored completions, with one or more passes over each update."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn

from rankpo.losses.grpo import GRPOLoss, candidate_slots, group_deviations
from rankpo.losses.ppo import (
    Estimates,
    PolicyTokens,
    PPOLoss,
    TokenPolicyLoss,
    discounted_sums,
    generalised_advantages,
    terminal_rewards,
    whitened,
)
from rankpo.models.causal_lm.language_model import scored_counts
from rankpo.models.causal_lm.model import CausalLanguageModel
from rankpo.models.engine.token_logps import TokenRequest, TokenValues
from rankpo.runs import processes
from rankpo.trainers.basic import BasicTrainer
from rankpo.trainers.update import MicroBatch, Prepared, Update
from rankpo.types import Batch, LossOutput


@dataclass(frozen=True)
class PolicyBatch(Batch):
    """A batch with log-probabilities and estimates of its tokens, computed at the start of its update.

    old_logps, reference_logps: [P] of the completions' tokens, in the order of `completion_tokens`.
    estimates: advantages and returns [P], or None where the loss takes them from the labels.
    """

    old_logps: Tensor | None = None
    reference_logps: Tensor | None = None
    estimates: Estimates | None = None


def completion_tokens(batch: Batch) -> tuple[Tensor, Tensor]:
    """Returns the indices [P] of the completions' tokens among the scored positions, and the counts [n] per completion.

    n is the number of unmasked candidates. The tokens of a candidate that occurs twice in the batch appear twice, although
    the model computes them once.
    """
    counts = scored_counts(batch.sequences)  # [N]
    starts = torch.cumsum(counts, 0) - counts
    known = batch.on_cpu
    rows = known.candidates[known.labels.mask]  # [n]
    places = [torch.arange(int(starts[row]), int(starts[row] + counts[row])) for row in rows]
    return torch.cat(places) if places else torch.zeros(0, dtype=torch.int64), counts[rows]


class TokenPolicyTrainer(BasicTrainer):
    """Base of the PPO and GRPO trainers. All passes over an update use the old log-probabilities from its start."""

    loss: TokenPolicyLoss
    main_term = "policy"
    has_held_out_loss = False  # The loss is relative to the weights at the start of an update.

    @property
    def num_passes(self) -> int:
        return self.loss.num_passes

    def begin(self, update: Prepared) -> Update:
        assert isinstance(update, Update)
        items = [self._remember(item) for item in update.micro_batches]
        return replace(update, micro_batches=items)

    @torch.no_grad()
    def _remember(self, item: MicroBatch) -> MicroBatch:
        """Returns the micro-batch with old and reference log-probabilities and the loss's estimates."""
        batch = item.batch.to(self.policy.device)
        self.policy.eval()
        try:
            tokens = self._tokens(batch, divergences=False)
        finally:
            self.policy.train()
        places = completion_tokens(batch)[0].to(self.policy.device, non_blocking=True)
        now = tokens.logps[places]
        fixed = now if tokens.reference_logps is None else tokens.reference_logps[places]
        old = now if self.loss.old_policy == "batch" else fixed
        known = {field.name: getattr(batch, field.name) for field in fields(Batch)}
        estimates = self.estimates(batch, tokens, places)
        return replace(item, batch=PolicyBatch(**known, old_logps=old, reference_logps=fixed, estimates=estimates))

    def _tokens(self, batch: Batch, divergences: bool) -> TokenValues:
        """Returns log-probabilities and the loss's other values at the scored positions.

        divergences: True computes the loss's divergences, which need another forward pass of the reference; False
        computes the reference's log-probabilities, if there is a reference.
        """
        measures = self.loss.measures if divergences else {}
        asked = self.reference is not None and (bool(measures) or not divergences)
        states = self.reference.states(batch.sequences) if asked and self.reference is not None else None
        return self.model(batch.sequences, TokenRequest(reference=states, divergences=measures, entropy=divergences))

    def estimates(self, batch: Batch, tokens: TokenValues, places: Tensor) -> Estimates | None:
        """Returns the loss's estimates for the tokens, or None if the loss has none."""
        return None

    def compute_loss(self, batch: Batch) -> LossOutput:
        assert isinstance(batch, PolicyBatch) and batch.old_logps is not None and batch.reference_logps is not None
        tokens = self._tokens(batch, divergences=True)
        places, counts = completion_tokens(batch)
        places = places.to(self.policy.device, non_blocking=True)
        compared = PolicyTokens(tokens.logps[places], batch.old_logps, batch.reference_logps)
        output = self.token_loss(batch, compared, tokens, places, counts)
        further = {"rewards/mean": self.rewards(batch)[candidate_slots(batch.labels)]}
        if tokens.entropy is not None:
            further["scores/entropy"] = tokens.entropy[places]
        return replace(output, metrics={**output.metrics, **further})

    def rewards(self, batch: Batch) -> Tensor:
        """Returns the reward of each completion, [B, G]."""
        return batch.labels.relevance

    def token_loss(
        self, batch: PolicyBatch, compared: PolicyTokens, tokens: TokenValues, places: Tensor, counts: Tensor
    ) -> LossOutput:
        raise TypeError(f"{type(self).__name__} must define token_loss")


class PPOTrainer(TokenPolicyTrainer):
    """Trains ppo. The critic estimates advantages at the start of an update; whitening spans all its tokens."""

    loss: PPOLoss

    def begin(self, update: Prepared) -> Update:
        update = super().begin(update)
        moments = torch.zeros(3, dtype=torch.float64, device=self.policy.device)  # count, sum, sum of squares
        for item in update.micro_batches:
            if item.counts:
                advantages = _estimates(item).advantages.double()
                moments += torch.stack(
                    [moments.new_full((), len(advantages)), advantages.sum(), advantages.square().sum()]
                )
        count, total, squares = processes.sum_over_ranks(moments)
        mean = total / count
        variance = (squares / count - mean.square()).clamp(min=0)
        items = [_with_whitened(item, mean, variance) for item in update.micro_batches]
        return replace(update, micro_batches=items)

    def rewards(self, batch: Batch) -> Tensor:
        return self.loss.rewards_of(batch.labels.relevance)

    def estimates(self, batch: Batch, tokens: TokenValues, places: Tensor) -> Estimates:
        assert tokens.critic is not None
        counts = completion_tokens(batch)[1]
        rewards = terminal_rewards(self.rewards(batch)[candidate_slots(batch.labels)], counts)
        values = tokens.critic[places]
        advantages = generalised_advantages(rewards, values, counts, self.loss.gamma, self.loss.lam)
        return Estimates(advantages, discounted_sums(rewards, counts, self.loss.gamma))

    def token_loss(
        self, batch: PolicyBatch, compared: PolicyTokens, tokens: TokenValues, places: Tensor, counts: Tensor
    ) -> LossOutput:
        assert batch.estimates is not None and tokens.critic is not None
        full = tokens.divergences.get("full")
        values = tokens.critic[places]
        return self.loss.of_tokens(compared, batch.estimates, values, None if full is None else full[places])

    def clip(self) -> float:
        """Returns the policy's gradient norm. The value head has its own clip, so that the critic's error, which is
        large at first, does not shrink the policy's step."""
        limit = self.loss.value_max_grad_norm
        if limit is None:
            return super().clip()
        head = self.policy.value_head
        assert isinstance(head, nn.Module)
        own = {id(parameter) for parameter in head.parameters()}
        rest = [p for p in self.model.parameters() if p.requires_grad and id(p) not in own]
        # The accelerator clips first, because that call unscales fp16 gradients, including those of the head.
        norm = self.strategy.clip(rest, self.settings.max_grad_norm or math.inf)
        of_head = processes.whole(nn.utils.clip_grad_norm_(head.parameters(), limit))
        self.running.add("grad_norm/value", of_head)
        return norm if torch.isfinite(of_head) else float(of_head)


class GRPOTrainer(TokenPolicyTrainer):
    """Trains grpo on the tokens of causal models, and as a loss on candidates' scores with other models."""

    loss: GRPOLoss

    def begin(self, update: Prepared) -> Update:
        assert isinstance(update, Update)
        return super().begin(update) if self.acts_on_tokens else self._regularised(update)

    @property
    def acts_on_tokens(self) -> bool:
        """Whether the model yields token log-probabilities."""
        return isinstance(self.policy, CausalLanguageModel)

    def compute_loss(self, batch: Batch) -> LossOutput:
        return super().compute_loss(batch) if self.acts_on_tokens else BasicTrainer.compute_loss(self, batch)

    def token_loss(
        self, batch: PolicyBatch, compared: PolicyTokens, tokens: TokenValues, places: Tensor, counts: Tensor
    ) -> LossOutput:
        labels = batch.labels
        advantages = self.loss.advantages(labels.relevance, labels.mask)[candidate_slots(labels)]
        output = self.loss.of_tokens(compared, advantages, counts)
        return replace(output, metrics={**output.metrics, "rewards/std": group_deviations(labels)})


def _estimates(item: MicroBatch) -> Estimates:
    assert isinstance(item.batch, PolicyBatch) and item.batch.estimates is not None
    return item.batch.estimates


def _with_whitened(item: MicroBatch, mean: Tensor, variance: Tensor) -> MicroBatch:
    batch, estimates = item.batch, _estimates(item)
    assert isinstance(batch, PolicyBatch)
    advantages = whitened(estimates.advantages, mean.to(estimates.advantages), variance.to(estimates.advantages))
    return replace(item, batch=replace(batch, estimates=estimates._replace(advantages=advantages)))
