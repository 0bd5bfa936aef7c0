"""Log-probabilities of completions by every family: against transformers' own logits, packed, padded, prompts shared."""

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoConfig, AutoModelForCausalLM

from rankpo.models.causal_lm.inputs import CompletionInputs
from rankpo.models.causal_lm.language_model import predicting_positions, scored_counts
from rankpo.models.causal_lm.model import CausalLanguageModel
from rankpo.models.causal_lm.settings import CausalSettings
from rankpo.models.engine.token_logps import TokenRequest
from rankpo.models.random_weights import byte_tokenizer
from rankpo.types import Sequences

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
    "vocab_size": 260,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAMILIES = {
    "llama": {"num_key_value_heads": 2},
    "qwen2": {"num_key_value_heads": 2},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 4},
    "mistral": {"num_key_value_heads": 2, "sliding_window": 6},
    "gemma": {"num_key_value_heads": 1, "head_dim": 4},
    "gemma2": {"num_key_value_heads": 1, "head_dim": 4, "final_logit_softcapping": 3.0},
    "gemma3_text": {"num_key_value_heads": 1, "head_dim": 4, "sliding_window": 6},
    "llama4_text": {
        "num_key_value_heads": 2,
        "head_dim": 4,
        "intermediate_size_mlp": 32,
        "num_local_experts": 2,
        "attention_chunk_size": 6,
    },
    "gpt_neox": {},
    "gpt2": {},
}


def backbone(family):
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(family, **SIZES | FAMILIES[family]), dtype=torch.float32
    )
    for parameter in made.parameters():
        if parameter.dim() > 1:  # far from uniform, so that a wrong position shows
            parameter.data.mul_(6)
    return made.eval()


def model_of(family, **options):
    return CausalLanguageModel(backbone(family), CompletionInputs(byte_tokenizer(), CausalSettings()), **options).eval()


# (prompt number, tokens of the prompt, tokens of the completion): 4 has one, 3 has three, the others two
SHAPES = [(0, 9, 3), (1, 4, 6), (4, 5, 3), (1, 4, 2), (0, 9, 5), (2, 1, 4), (2, 1, 1), (3, 7, 1), (3, 7, 8), (3, 7, 2)]


def sequences(prefixes=True):
    """Random tokens; sequences of one prompt begin with it, and stand apart."""
    generator = torch.Generator().manual_seed(1)
    prompts = {number: torch.randint(4, 260, (length,), generator=generator) for number, length, _ in SHAPES}
    ids, labels = [], []
    for number, length, answer in SHAPES:
        completion = torch.randint(4, 260, (answer,), generator=generator)
        ids += [prompts[number], completion]
        labels += [torch.full((length,), -100), completion]
    return Sequences(
        input_ids=torch.cat(ids),
        lengths=torch.tensor([length + answer for _, length, answer in SHAPES]),
        labels=torch.cat(labels),
        prefixes=torch.tensor([shape[:2] for shape in SHAPES]) if prefixes else None,
    )


def expected(made, given):
    """[N] from transformers' own logits, one sequence at a time, in float64."""
    sums = []
    sizes = given.lengths.tolist()
    for ids, labels in zip(given.input_ids.split(sizes), given.labels.split(sizes), strict=True):
        logps = made(input_ids=ids[None], use_cache=False).logits[0, :-1].double().log_softmax(-1)
        kept = labels[1:] != -100
        sums.append(logps[kept].gather(-1, labels[1:][kept][:, None]).sum())
    return torch.stack(sums)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("options", [{"layout": "padded"}, {"share_prompts": False}, {}, {"chunk_tokens": 12}])
def test_equal_to_transformers_alone(family, options):
    given, made = sequences(), model_of(family, **options)
    assert made.packed == (options.get("layout") != "padded" and family not in ("gemma2", "llama4_text"))
    assert made.share_prompts == (made.packed and options.get("share_prompts", True))
    scores = made(given)
    assert_close(scores.double(), expected(backbone(family), given), atol=2e-4, rtol=1e-5)
    assert scores.dtype == torch.float32


def test_a_soft_cap_is_part_of_the_scores():
    """Left out, the scores would be other ones: the comparison above can fail."""
    capped, plain = backbone("gemma2"), backbone("gemma2")
    plain.config.final_logit_softcapping = None
    assert (expected(capped, sequences()) - expected(plain, sequences())).abs().max() > 0.05


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "mistral", "gpt2"])
def test_sharing_prompts_changes_no_gradient(family):
    weights = torch.linspace(-1, 2, len(SHAPES))
    gradients = []
    for given in (sequences(), sequences(prefixes=False)):
        made = model_of(family)
        (made(given) * weights).sum().backward()
        gradients.append({name: parameter.grad for name, parameter in made.named_parameters()})
    shared, apart = gradients
    for name, gradient in apart.items():
        assert_close(shared[name], gradient, atol=1e-4 * float(gradient.abs().max()) + 1e-6, rtol=0, msg=name)


def tokens_computed(made, given):
    """Tokens that the decoder sees."""
    seen = []
    hook = made.base.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    made(given)
    hook.remove()
    return sum(seen)


def test_a_shared_prompt_is_computed_once():
    """Prompts of 9, 4, 5, 1 and 7 tokens once each, and every completion but for its last token."""
    made = model_of("llama")
    completions = sum(answer - 1 for *_, answer in SHAPES)
    assert tokens_computed(made, sequences()) == 9 + 4 + 5 + 1 + 7 + completions
    assert tokens_computed(made, sequences(prefixes=False)) == int(sequences().lengths.sum())


def test_values_per_token():
    """Sums of the tokens' log-probabilities are the scores; a model beside itself diverges by nothing."""
    given, made = sequences(), model_of("llama")
    reference = made.reference_states(given)
    request = TokenRequest(
        reference=reference, divergences={"kl": lambda p, q: (p.exp() * (p - q)).sum(-1)}, entropy=True, hidden=True
    )
    values = made(given, request)
    counts = scored_counts(given)
    assert counts.tolist() == [answer for *_, answer in SHAPES]
    assert_close(torch.stack([part.sum() for part in values.logps.split(counts.tolist())]), made(given))
    assert torch.equal(values.logps, values.reference_logps)
    assert torch.equal(values.divergences["kl"], torch.zeros(int(counts.sum())))
    assert values.hidden.shape == (int(counts.sum()), 16) and values.hidden.requires_grad
    assert not reference.hidden.requires_grad
    assert bool((values.entropy > 0).all())


def test_a_sequence_without_labels_scores_zero():
    given = sequences()
    labels = given.labels.clone()
    labels[: int(given.lengths[0])] = -100
    scores = model_of("llama")(Sequences(given.input_ids, given.lengths, labels, prefixes=given.prefixes))
    assert float(scores[0].detach()) == 0.0 and bool((scores[1:] < 0).all())


def test_what_cannot_be_scored_is_refused():
    given = sequences()
    first = given.labels.clone()
    first[int(given.lengths[0])] = 5
    with pytest.raises(ValueError, match="the first token of a sequence has a label"):
        predicting_positions(Sequences(given.input_ids, given.lengths, first))
    with pytest.raises(ValueError, match="sequences have no labels"):
        model_of("llama")(Sequences(given.input_ids, given.lengths))


def test_a_head_that_does_more_is_refused():
    config = AutoConfig.for_model("granite", **SIZES, num_key_value_heads=2, logits_scaling=3.0)
    made = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with pytest.raises(ValueError, match="GraniteForCausalLM changes its logits after the output head"):
        CausalLanguageModel(made, CompletionInputs(byte_tokenizer(), CausalSettings()))
