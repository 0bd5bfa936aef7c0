"""Causal language models: a sequence's score is the log-probability of its completion.

The interface that losses and trainers on tokens build on:

- `model(sequences)` gives [N] float32: the sum over a sequence's labels (those that are not -100) of log p(label), in
  nats. `model.score(output, batch)` lays them out as [B, G]; `batch.labels.lengths` [B, G] counts the scored tokens.
- `model(sequences, TokenRequest(...))` gives `TokenValues` at the P scored positions, sequence after sequence:
  logps, and where asked for reference_logps, divergences by name, entropy and hidden states, [P] or [P, D] each.
  `scored_counts(sequences)` [N] says how many positions belong to each sequence: `values.logps.split(counts)`.
- `reference.reference_states(sequences)` gives what `TokenRequest(reference=…)` takes: the hidden states of a frozen
  model, or under `adapters_off()` of the policy itself, at the same positions. Its logits are made block by block
  beside the policy's and never stand in memory together.
- Everything goes through `forward`, so that DDP, FSDP and autocast see it: call the wrapped model, never its parts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rankpo.data.loaders.planner import cut, deal
from rankpo.models.base import RankingModel
from rankpo.models.causal_lm.inputs import CompletionInputs
from rankpo.models.causal_lm.settings import CausalSettings
from rankpo.models.engine.packing import PACKED_SDPA
from rankpo.models.engine.prompt_trees import places, plant, token_ids, tree_arguments
from rankpo.models.engine.token_logps import Divergence, Head, ReferenceStates, TokenRequest, TokenValues, token_values
from rankpo.runs import processes
from rankpo.types import Batch, Labels, Prompt, Sequences

if TYPE_CHECKING:
    from rankpo.data.loaders.ranking import Group
    from rankpo.data.table import ExampleTable

SCORE_TOKENS = 16384  # tokens assembled at once where nothing is trained


class CausalLanguageModel(RankingModel):
    """Log-probabilities of completions by any `*ForCausalLM` of transformers with a linear output head.

    settings: chat format and lengths; saved with the weights and used alike by training, evaluation and sampling.
    Raises ValueError for a head that is more than a linear layer with a soft cap: its logits would be other ones.
    """

    kind = "causal_lm"

    def __init__(
        self,
        backbone: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        settings: CausalSettings,
        *,
        layout: str = "auto",
        chunk_tokens: int | None = None,
        share_prompts: bool = True,
    ) -> None:
        super().__init__(backbone, layout=layout, chunk_tokens=chunk_tokens)
        self.tokenizer = tokenizer
        self.settings = settings
        self.inputs = CompletionInputs(tokenizer, settings)
        self.inputs.share_prompts = self.share_prompts = share_prompts and self._can_share
        self.value_head: nn.Module | None = None  # see models/value_head.py
        self._prove_head()

    @property
    def _can_share(self) -> bool:
        """Whether attention is ours: flash attention's kernel and padded rows know no branches."""
        body: Any = self.base.base_model
        return self.packed and body.config._attn_implementation == PACKED_SDPA

    @property
    def head(self) -> Head:
        output: Any = self.base.get_output_embeddings()
        if not isinstance(output, nn.Linear):
            raise ValueError(
                f"the output head is a {type(output).__name__}, not a linear layer; leave it out of peft.target_modules"
            )
        softcap = getattr(self.base.config.get_text_config(), "final_logit_softcapping", None)
        return Head(output.weight, output.bias, softcap)

    @overload
    def forward(self, sequences: Sequences) -> Tensor: ...
    @overload
    def forward(self, sequences: Sequences, request: TokenRequest) -> TokenValues: ...
    def forward(self, sequences: Sequences, request: TokenRequest | None = None) -> Tensor | TokenValues:
        hidden = self.scored_hidden(sequences)  # [P, D]
        labels = scored_labels(sequences).to(self.device, non_blocking=True)  # [P]
        values = token_values(hidden, labels, self.head, request or TokenRequest())
        if request is None:
            return sum_by_sequence(values.logps, sequences)
        return values if self.value_head is None else values._replace(critic=self.value_head(hidden))

    def scored_hidden(self, sequences: Sequences) -> Tensor:
        """[P, D] hidden states of the positions that predict the labels, sequence after sequence."""
        if self.share_prompts and sequences.prefixes is not None:
            return self._scored_hidden_of_trees(sequences)
        predicting = predicting_positions(sequences)  # [S] bool
        starts = torch.cumsum(sequences.lengths, 0) - sequences.lengths
        kept, places = [], []
        for rows, hidden, lengths in self.hidden_states(sequences):
            inside = torch.arange(int(lengths.sum())) - torch.repeat_interleave(
                torch.cumsum(lengths, 0) - lengths, lengths
            )
            place = torch.repeat_interleave(starts[rows], lengths) + inside  # [tokens] in `sequences`
            scored = predicting[place].nonzero().squeeze(-1)
            places.append(place[scored])
            kept.append(hidden[scored.to(hidden.device, non_blocking=True)])
        if not kept:
            return self.head.weight.new_zeros(0, self.head.weight.shape[1])
        return torch.cat(kept)[torch.argsort(torch.cat(places)).to(self.device, non_blocking=True)]

    def _scored_hidden_of_trees(self, sequences: Sequences) -> Tensor:
        """The same, each prompt computed once for all its completions."""
        predicting = predicting_positions(sequences).split(sequences.lengths.tolist())
        starts = (torch.cumsum(sequences.lengths, 0) - sequences.lengths).tolist()
        ids = sequences.input_ids.to(self.device, non_blocking=True)
        trees = plant(sequences)
        kept, order = [], []
        for chunk in self._chunks(torch.tensor([tree.num_tokens for tree in trees], dtype=torch.int64)):
            several = [trees[number] for number in chunk.tolist()]
            tokens = torch.cat([piece for tree in several for piece in token_ids(tree, sequences, ids, starts)])
            arguments = tree_arguments(several, self.device, self.position_offset)
            hidden = self._backbone(input_ids=tokens[None], **arguments)[0]
            begin, chosen = 0, []
            for tree in several:
                for row in tree.rows:
                    scored = predicting[row].nonzero().squeeze(-1)
                    chosen.append(places(tree, row, begin)[scored])
                    order.append(scored + starts[row])
                begin += tree.num_tokens
            kept.append(hidden[torch.cat(chosen).to(self.device, non_blocking=True)])
        if not kept:
            return self.head.weight.new_zeros(0, self.head.weight.shape[1])
        return torch.cat(kept)[torch.argsort(torch.cat(order)).to(self.device, non_blocking=True)]

    @torch.no_grad()
    def reference_states(self, sequences: Sequences) -> ReferenceStates:
        """What a `TokenRequest` needs of this model as the reference; in evaluation mode, without gradient."""
        training = self.training
        self.eval()
        try:
            if not self.sharded:
                return ReferenceStates(self.scored_hidden(sequences), self.head)
            # split weights are gathered in a whole forward pass alone; the head, in that of the policy, whose it is too
            hidden = self(sequences, TokenRequest(hidden=True)).hidden
            return ReferenceStates(hidden, head=None)
        finally:
            self.train(training)

    def score(self, output: Tensor, batch: Batch) -> Tensor:
        """[B, G] summed log-probabilities of the completions; 0 where masked."""
        return output[batch.candidates].masked_fill(~batch.labels.mask, 0.0)

    def labels(self, table: ExampleTable, groups: Sequence[Group]) -> Labels:
        return self.inputs.labels(table, groups)

    def truncation(self, table: ExampleTable) -> str | None:
        return self.inputs.report(table)

    def slot_scores(self, table: ExampleTable) -> np.ndarray:
        """[slots] float32 summed log-probabilities; each distinct (prompt, completion) is read once, by one rank."""
        return self.slot_values(table)["scores"]

    @torch.no_grad()  # not inference mode: weights that FSDP2 gathers in it could not be trained afterwards
    def slot_values(
        self,
        table: ExampleTable,
        reference: Callable[[Sequences], ReferenceStates] | None = None,
        divergences: Mapping[str, Divergence] | None = None,
    ) -> dict[str, np.ndarray]:
        """[slots] float32 by name: `scores` as `slot_scores`; with the states of a reference also `reference`, the same
        of its model, and the divergences from it, summed over each completion's tokens."""
        names = ("scores",) if reference is None else ("scores", "reference", *(divergences or {}))
        slots = self.inputs.slot_pieces(table)
        pieces = list(dict.fromkeys(slots))
        lengths = self.inputs.lengths(table, pieces)
        own = deal(lengths, processes.world_size())[processes.rank()]
        output = torch.zeros(len(own), len(names))
        training = self.training
        self.eval()
        try:

            def sums(chosen: Sequence[int]) -> Tensor:
                sequences = self.inputs.sequences(table, [pieces[index] for index in chosen])
                return self._sums(sequences, reference, divergences or {})

            with processes.units_in_step(self, lambda: sums([int(lengths.argmin())])) as announce:
                for part in cut(np.arange(len(own)), lengths[own], SCORE_TOKENS):
                    announce()
                    output[torch.from_numpy(part)] = sums(own[part].tolist())
        finally:
            self.train(training)
        if processes.world_size() > 1:
            output = processes.place_rows(output.to(self.device), torch.from_numpy(own), len(pieces)).cpu()
        number = {piece: index for index, piece in enumerate(pieces)}
        of_slots = output.numpy()[[number[piece] for piece in slots]]
        return {name: np.ascontiguousarray(of_slots[:, column]) for column, name in enumerate(names)}

    def _sums(
        self,
        sequences: Sequences,
        reference: Callable[[Sequences], ReferenceStates] | None,
        divergences: Mapping[str, Divergence],
    ) -> Tensor:
        """[N, 1], or [N, 2 + divergences] with a reference: float32 on the CPU."""
        if reference is None:
            return self(sequences).float().cpu()[:, None]
        values = self(sequences, TokenRequest(reference=reference(sequences), divergences=divergences))
        assert values.reference_logps is not None
        columns = (values.logps, values.reference_logps, *values.divergences.values())
        return torch.stack([sum_by_sequence(column, sequences).float().cpu() for column in columns], 1)

    @torch.inference_mode()
    def logps(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> np.ndarray:
        """[n] float32 log-probabilities in nats of completions, each behind its prompt: text, or (role, content) turns."""
        training = self.training
        self.eval()
        try:
            return self(self.inputs.sequences_of(prompts, completions)).float().cpu().numpy()
        finally:
            self.train(training)

    def export(self, folder: Path, description: Mapping[str, Any]) -> float:
        """Writes the folder whole and loads it again; returns the largest difference of a log-probability."""
        from rankpo.models.causal_lm.saving import export_causal

        return export_causal(folder, self, description)

    def _backbone(self, **arguments: Any) -> Tensor:
        # adapters sit inside the layers, so the bare decoder sees them; the head is applied elsewhere, in blocks
        return self.base.base_model(**arguments, use_cache=False).last_hidden_state

    @torch.no_grad()
    def _prove_head(self) -> None:
        """Compares our logits with the model's own on a few tokens."""
        ids = (torch.arange(3, 8, device=self.device) * 7) % self.base.config.get_text_config().vocab_size
        training = self.training
        self.eval()
        try:
            attention = self.base.config._attn_implementation
            self.base.config._attn_implementation = "sdpa" if self.packed else attention
            theirs = self.base(input_ids=ids[None], use_cache=False).logits[0, :-1].float().log_softmax(-1)
            hidden = self._backbone(input_ids=ids[None])[0, :-1]
            self.base.config._attn_implementation = attention
        finally:
            self.train(training)
        ours = token_values(hidden, ids[1:], self.head, TokenRequest()).logps
        expected = theirs.gather(-1, ids[1:, None]).squeeze(-1)
        if not torch.allclose(ours, expected, atol=1e-3 if hidden.dtype == torch.float32 else 5e-2):
            raise ValueError(
                f"{type(self.base).__name__} changes its logits after the output head (log-probabilities differ by "
                f"{float((ours - expected).abs().max()):.1e}); only linear heads with final_logit_softcapping are known"
            )


def predicting_positions(sequences: Sequences) -> Tensor:
    """[S] bool on the CPU, True where the next token is a label. Raises ValueError for a label on a first token."""
    labels = sequences.labels
    if labels is None:
        raise ValueError("sequences have no labels: nothing is to be scored")
    scored = labels.cpu() != -100
    starts = torch.cumsum(sequences.lengths, 0) - sequences.lengths
    if bool(scored[starts[sequences.lengths > 0]].any()):
        raise ValueError("the first token of a sequence has a label, and nothing before it to predict it from")
    return torch.cat([scored[1:], scored.new_zeros(1)]) if len(scored) else scored


def scored_labels(sequences: Sequences) -> Tensor:
    """[P] the labels that are not -100, sequence after sequence, on the CPU."""
    assert sequences.labels is not None
    labels = sequences.labels.cpu()
    return labels[labels != -100]


def scored_counts(sequences: Sequences) -> Tensor:
    """[N] int64 on the CPU: scored positions of each sequence."""
    assert sequences.labels is not None
    ends = torch.cumsum(sequences.lengths, 0)
    running = torch.cat([torch.zeros(1, dtype=torch.int64), (sequences.labels.cpu() != -100).cumsum(0)])
    return running[ends] - running[ends - sequences.lengths]


def sum_by_sequence(values: Tensor, sequences: Sequences) -> Tensor:
    """[N] sums of values [P] at the scored positions of each sequence; 0 for a sequence without any."""
    counts = scored_counts(sequences).to(values.device, non_blocking=True)
    return torch.segment_reduce(values, "sum", lengths=counts, initial=0)
