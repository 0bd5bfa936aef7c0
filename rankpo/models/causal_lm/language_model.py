"""Language models: decoders with a linear output head, applied at the positions that predict labels."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rankpo.models.attention import plain_attention
from rankpo.models.base import RankingModel
from rankpo.models.engine.body import body_of
from rankpo.models.engine.packing import PACKED_SDPA
from rankpo.models.engine.prompt_trees import places, plant, token_ids, tree_arguments
from rankpo.models.engine.token_logps import Head, TokenRequest, token_values
from rankpo.models.inputs import Inputs
from rankpo.types import Sequences


class LanguageModel(RankingModel):
    """Base of the kinds causal_lm and listwise: the output head, and hidden states at scored positions.

    share_prompts: whether a prompt is computed once for all its completions. Raises ValueError for a head other than
    a linear layer with an optional soft cap.
    """

    def __init__(
        self,
        backbone: PreTrainedModel,
        inputs: Inputs,
        *,
        layout: str = "auto",
        chunk_tokens: int | None = None,
        share_prompts: bool = False,
    ) -> None:
        super().__init__(backbone, inputs, layout=layout, chunk_tokens=chunk_tokens)
        self.share_prompts = share_prompts and self._can_share
        self._prove_head()

    @property
    def _can_share(self) -> bool:
        """Whether the model uses our attention; flash attention's kernel and padded rows do not support branches."""
        return self.packed and body_of(self.base).config._attn_implementation == PACKED_SDPA

    @property
    def head(self) -> Head:
        output: object = self.base.get_output_embeddings()
        if not isinstance(output, nn.Linear):
            raise ValueError(
                f"the output head is a {type(output).__name__}, not a linear layer; leave it out of peft.target_modules"
            )
        softcap = getattr(self.base.config.get_text_config(), "final_logit_softcapping", None)
        return Head(output.weight, output.bias, softcap)

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
        """Computes `scored_hidden` with each prompt computed once for all its completions."""
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
    def _prove_head(self) -> None:
        """Compares our logits with those of the model on a few tokens."""
        ids = (torch.arange(3, 8, device=self.device) * 7) % self.base.config.get_text_config().vocab_size
        with self.evaluating(), plain_attention(self.base, self.packed):
            theirs = self.base(input_ids=ids[None], use_cache=False).logits[0, :-1].float().log_softmax(-1)
            hidden = self._backbone(input_ids=ids[None])[0, :-1]
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
    # The check that counts fit the values would read them, and so wait for a GPU.
    return torch.segment_reduce(values, "sum", lengths=counts, unsafe=True, initial=0)
