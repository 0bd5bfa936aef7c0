"""Kept attention: a second pass that reads the outputs of the first gives the values and gradients of a whole pass."""

import pytest
import torch
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from rankpo.models.embedding.inputs import EmbeddingInputs
from rankpo.models.embedding.model import EmbeddingModel
from rankpo.models.embedding.settings import EmbeddingSettings
from rankpo.models.engine.kept_attention import KeptAttention
from rankpo.models.random_weights import byte_tokenizer
from tests.models.families import FAMILIES, backbone, sequences

LENGTHS = (9, 23, 2, 9, 1, 17)


class Calls(TorchDispatchMode):
    """Counts calls of attention's forward and backward kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.forward = self.backward = 0

    def __torch_dispatch__(self, operation, types, arguments=(), named=None):
        name = str(operation)
        self.backward += "attention_for_cpu_backward" in name
        self.forward += "attention_for_cpu" in name and "backward" not in name
        return operation(*arguments, **(named or {}))


def packed(family: str) -> EmbeddingModel:
    settings = EmbeddingSettings(query_max_length=60, passage_max_length=60)
    return EmbeddingModel(backbone(family), EmbeddingInputs(byte_tokenizer(), settings), layout="packed")


def states(model: EmbeddingModel):
    return torch.cat([hidden for _, hidden, _ in model.hidden_states(sequences(LENGTHS))])


def gradients(model: EmbeddingModel, output: torch.Tensor):
    model.zero_grad()
    (output * torch.arange(output.numel()).reshape(output.shape).cos()).sum().backward()
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_second_pass_is_a_whole_pass(family):
    model = packed(family)
    with Calls() as whole:
        expected = states(model)
    found = gradients(model, expected)
    store = KeptAttention()
    with store.written(), torch.no_grad():
        assert_close(states(model), expected, atol=1e-6, rtol=1e-6)
    with store.read(), Calls() as again:
        output = states(model)
    assert_close(output, expected, atol=1e-6, rtol=1e-6)
    masked = {"modernbert": 1, "mistral": 2, "gemma3_text": 1}.get(family, 0)  # Layers whose windows need masks.
    assert whole.forward > 0 and (again.forward == 0 or masked)
    assert again.forward < whole.forward
    for name, gradient in gradients(model, output).items():
        assert_close(gradient, found[name], atol=1e-4, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


def test_other_calls_than_those_of_the_first_pass_are_errors():
    model = packed("bert")
    store = KeptAttention()
    with store.written(), torch.no_grad():
        states(model)
    with pytest.raises(RuntimeError, match="unread"), store.read():
        pass
    with pytest.raises(RuntimeError, match="in the second pass"), store.read():
        list(model.hidden_states(sequences((5, 4))))
