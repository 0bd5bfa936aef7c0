"""Inputs of a reward model: prompts and completions, as a causal language model reads them."""

from __future__ import annotations

from rankpo.models.causal_lm.inputs import CompletionInputs

__all__ = ["CompletionInputs"]
