"""Completion models: models with one score per completion of a prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from rankpo.data.loaders.planner import cut, deal
from rankpo.data.table import ExampleTable
from rankpo.models.base import RankingModel
from rankpo.models.causal_lm.inputs import CompletionInputs
from rankpo.models.causal_lm.settings import CausalSettings
from rankpo.models.engine.positions import check_positions
from rankpo.runs import processes
from rankpo.types import Batch, Prompt, Sequences

SCORE_TOKENS = 16384  # Tokens per block without training.


class CompletionModel(RankingModel):
    """Base of the kinds causal_lm and reward_model: `forward(sequences)` returns [N] float32 scores."""

    inputs: CompletionInputs
    settings: CausalSettings

    def check_positions(self) -> None:
        """Raises ConfigError for model.max_length above the positions of the backbone."""
        check_positions(self.settings.max_length, self.base, self.position_offset)

    def score(self, output: Tensor, batch: Batch) -> Tensor:
        """[B, G] scores of the completions; 0 where masked."""
        return output[batch.candidates].masked_fill(~batch.labels.mask, 0.0)

    def slot_scores(self, table: ExampleTable) -> np.ndarray:
        return self.slot_columns(table, 1, lambda sequences: self(sequences).float().cpu()[:, None])[:, 0]

    @torch.no_grad()  # not inference mode: weights that FSDP2 gathers in it could not be trained afterwards
    def slot_columns(self, table: ExampleTable, columns: int, values: Callable[[Sequences], Tensor]) -> np.ndarray:
        """Returns [slots, columns] float32 on every rank; one rank computes each distinct (prompt, completion) once.

        values: returns [N, columns] on the CPU; called in evaluation mode, equally often on all ranks.
        """
        slots = self.inputs.slot_pieces(table)
        pieces = list(dict.fromkeys(slots))
        lengths = self.inputs.sizes(table, pieces)
        own = deal(lengths, processes.world_size())[processes.rank()]
        output = torch.zeros(len(own), columns)

        def of(chosen: Sequence[int]) -> Tensor:
            return values(self.inputs.sequences(table, [pieces[index] for index in chosen]))

        with self.evaluating(), processes.units_in_step(self, lambda: of([int(lengths.argmin())])) as announce:
            for part in cut(np.arange(len(own)), lengths[own], SCORE_TOKENS):
                announce()
                output[torch.from_numpy(part)] = of(own[part].tolist())
        if processes.world_size() > 1:
            output = processes.place_rows(output.to(self.device), torch.from_numpy(own), len(pieces)).cpu()
        number = {piece: index for index, piece in enumerate(pieces)}
        return np.ascontiguousarray(output.numpy()[[number[piece] for piece in slots]])

    @torch.inference_mode()
    def score_completions(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> np.ndarray:
        """[n] float32 scores of completions, each behind its prompt: text, or (role, content) turns."""
        sequences = self.inputs.sequences_of(prompts, completions)
        with self.evaluating():
            scores: Tensor = self(sequences)
        return scores.float().cpu().numpy()
