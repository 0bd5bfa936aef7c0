"""Settings of a causal language model's inputs, saved with the weights."""

from __future__ import annotations

from dataclasses import dataclass

from rankpo.models.settings import Settings


@dataclass(frozen=True, kw_only=True)
class CausalSettings(Settings):
    """max_length: tokens of prompt and completion together, max_prompt_length of the prompt alone.

    chat_template: jinja in place of the tokenizer's; None for the tokenizer's, or the default where it has none.
    control_tokens: what precedes desirable and undesirable completions (loss=csft), or None.
    """

    max_length: int = 1024
    max_prompt_length: int = 512  # HALOs has the same lengths.
    chat_template: str | None = None
    control_tokens: tuple[str, str] | None = None

    def __post_init__(self) -> None:
        if self.max_length < 4:
            raise ValueError(f"max_length must be >= 4 tokens, got {self.max_length}")
        if not 2 <= self.max_prompt_length <= self.max_length - 2:
            raise ValueError(
                f"max_prompt_length must be in 2 to max_length - 2 = {self.max_length - 2}, "
                f"got {self.max_prompt_length}"
            )
        if self.control_tokens is not None:
            if len(self.control_tokens) != 2 or len(set(self.control_tokens)) != 2:
                raise ValueError(f"control_tokens must be two different tokens or null, got {self.control_tokens}")
            object.__setattr__(self, "control_tokens", tuple(self.control_tokens))
