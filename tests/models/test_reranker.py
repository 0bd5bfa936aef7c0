"""Rerankers: the architecture's own scores, whatever the neighbours, and the same scores wherever FINAL is loaded."""

import json
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

import rankpo
from rankpo.config.compose import compose
from rankpo.models.known import known_settings, table
from rankpo.models.loading import LoadingError
from rankpo.models.random_weights import byte_tokenizer, random_backbone
from rankpo.models.reranker.config import RerankerKind
from rankpo.models.reranker.inputs import RerankerInputs
from rankpo.models.reranker.model import RerankerModel
from rankpo.models.reranker.settings import RerankerSettings
from rankpo.models.saving import ExportError
from tests.models.families import FAMILIES as SIZES
from tests.models.saved import saved
from tests.rerankers import RERANKERS
from tests.tokenizers import bert, llama, qwen, sentencepiece

PAIRS = [
    ("what do moles eat?", "Moles eat earthworms, which they keep alive."),
    ("a", "b"),
    ("what do moles eat?", "Mole is also a Mexican sauce."),
    ("cats", ""),
]
TEMPLATE = {"separator": "\n", "query_format": "query: {}", "document_format": "document: {}", "suffix": "\nrelevant:"}
SLICES = ("model.long_document=max_slice",)
TINY = ("encoder", "decoder", "yes_no")


def quiet(message):
    pass


def model_of(name, *overrides, seed=3) -> RerankerModel:
    """A tiny reranker whose scores differ well: every weight is drawn anew."""
    config = compose([*RERANKERS[name], "loss=dpo", *overrides]).model
    torch.manual_seed(seed)
    model = config.build(config.open_inputs(quiet), quiet)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def head_of(family):
    return (
        "encoder" if family in ("bert", "roberta", "xlm-roberta", "electra", "modernbert", "deberta-v2") else "decoder"
    )


def tiny(family, tokenizer, head=None, layout="auto", **settings) -> RerankerModel:
    """A random reranker of an architecture, over this tokenizer."""
    head = head or head_of(family)
    kind = AutoModelForCausalLM if head == "causal_lm" else AutoModelForSequenceClassification
    sizes = dict(SIZES["bert"] if family == "deberta-v2" else SIZES[family])
    torch.manual_seed(2)
    backbone = random_backbone(
        {
            "model_type": family,
            **sizes,
            "vocab_size": 400,
            "num_labels": 1,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": None,
            "eos_token_id": None,
        },
        "eager" if family == "deberta-v2" else "sdpa",
        family=kind,
    ).eval()
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    templates = {} if head == "encoder" else TEMPLATE
    inputs = RerankerInputs(tokenizer, RerankerSettings(head=head, max_length=70, **{**templates, **settings}))
    return RerankerModel(backbone, inputs, layout=layout).eval()


def by_transformers(model, pairs) -> torch.Tensor:
    """Logits of each pair alone, by the architecture's own forward pass: [pairs, labels or vocabulary]."""
    rows = []
    for pair in pairs:
        sequences = model.inputs.sequences_of([pair])
        ids = {"input_ids": sequences.input_ids[None]}
        if sequences.token_types is not None:
            ids["token_type_ids"] = sequences.token_types[None]
        implementation, model.base.config._attn_implementation = model.base.config._attn_implementation, "eager"
        with torch.no_grad():
            logits = model.base(**ids).logits
        model.base.config._attn_implementation = implementation
        rows.append(logits[0] if logits.dim() == 2 else logits[0, -1])
    return torch.stack(rows)


@pytest.mark.parametrize("layout", ["auto", "padded"])
@pytest.mark.parametrize("family", [*(name for name in SIZES if name != "distilbert"), "deberta-v2"])
def test_scores_are_the_architectures_own(family, layout):
    """Together, in any order and packed or padded here; alone and by transformers there."""
    tokenizer = byte_tokenizer() if head_of(family) == "encoder" else qwen()
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)
    model = tiny(family, tokenizer, layout=layout)
    with torch.no_grad():
        ours = model(model.inputs.sequences_of(PAIRS))
    assert ours.std() > 1e-3
    assert_close(ours, by_transformers(model, PAIRS)[:, 0], atol=2e-5, rtol=1e-4)


def test_token_types_reach_the_model():
    model = tiny("bert", bert())
    ours = torch.tensor(model.compute_score(PAIRS))
    assert_close(ours, by_transformers(model, PAIRS)[:, 0], atol=2e-5, rtol=1e-4)
    types = model.base.base_model.embeddings.token_type_embeddings.weight
    with torch.no_grad():
        types[1] += torch.arange(len(types[1])) % 3
    assert (torch.tensor(model.compute_score(PAIRS)) - ours).abs().max() > 1e-3


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "gemma3_text"])
@pytest.mark.parametrize("readout", ["difference", "yes"])
def test_yes_and_no_are_the_logits_behind_the_last_token(family, readout):
    tokenizer = qwen()
    model = tiny(family, tokenizer, "causal_lm", readout=readout, suffix="\nrelevant:\n")
    ids = [tokenizer.convert_tokens_to_ids(word) for word in ("yes", "no")]
    assert model.answers == tuple(ids if readout == "difference" else ids[:1])
    logits = by_transformers(model, PAIRS)
    expected = logits[:, ids[0]] - (logits[:, ids[1]] if readout == "difference" else 0)
    assert_close(torch.tensor(model.compute_score(PAIRS)), expected, atol=2e-5, rtol=1e-4)


def test_soft_caps_act_on_the_logits():
    """cap · tanh(z / cap): with a cap of 0.5, the difference of two answers is below 1."""
    torch.manual_seed(0)
    sizes = {**SIZES["gemma3_text"], "vocab_size": 400, "final_logit_softcapping": 0.5, "pad_token_id": 0}
    backbone = random_backbone({"model_type": "gemma3_text", **sizes}, family=AutoModelForCausalLM).eval()
    with torch.no_grad():
        backbone.get_output_embeddings().weight.mul_(6)
    settings = RerankerSettings(head="causal_lm", max_length=70, **{**TEMPLATE, "suffix": "\nrelevant:\n"})
    model = RerankerModel(backbone, RerankerInputs(qwen(), settings)).eval()
    ours, logits = torch.tensor(model.compute_score(PAIRS)), by_transformers(model, PAIRS)
    assert_close(ours, logits[:, model.answers[0]] - logits[:, model.answers[1]], atol=2e-5, rtol=1e-4)
    assert 0.1 < logits[:, list(model.answers)].abs().max() < 0.5


def test_pad_equal_to_eos_changes_nothing():
    """The suffix ends in the pad token, as with Zephyr: positions come from lengths."""
    tokenizer = sentencepiece()
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    model = tiny("mistral", tokenizer, suffix="</s>")
    alone = [model.compute_score(pair) for pair in PAIRS]
    assert_close(model.compute_score(PAIRS), alone, atol=1e-5, rtol=0)
    before = model.compute_score(PAIRS)
    model.base.config.pad_token_id = 5
    assert model.compute_score(PAIRS) == before


@pytest.mark.parametrize("name", TINY)
def test_neighbours_and_budgets_change_nothing(name):
    model = model_of(name)
    pairs = [*PAIRS, ("long", "word " * 60), PAIRS[0]]
    together = model.compute_score(pairs)
    assert_close(together, [model.compute_score(pair) for pair in pairs], atol=1e-5, rtol=0)
    for batch_tokens in (1, 64, 100000):
        assert_close(model.compute_score(pairs, batch_tokens=batch_tokens), together, atol=1e-5, rtol=0)
    assert together[0] == together[-1]
    assert max(together) - min(together) > 1e-3


def test_compute_score_takes_one_pair_or_many():
    model = model_of("encoder")
    one = model.compute_score(("ab", "cd"))
    assert isinstance(one, float)
    assert model.compute_score(["ab", "cd"]) == one  # two strings of two letters each are one pair
    assert model.compute_score([("ab", "cd")]) == [one]
    assert model.compute_score([]) == []
    assert model.compute_score([["ab", "cd"], ["x", "y"]])[0] == pytest.approx(one, abs=1e-6)


@pytest.mark.parametrize(
    ("pairs", "error", "message"),
    [
        ([("a", "b"), ("a", "b", "c")], TypeError, r"pairs\[1\] must be two strings"),
        ([("a", 3)], TypeError, r"pairs\[0\] must be two strings"),
        ([("a", "b"), "ab"], TypeError, r"pairs\[1\] must be two strings"),
        ("ab", TypeError, "got one string"),
        ([("a", "b"), ("  ", "b")], ValueError, r"pairs\[1\]: the query is empty"),
    ],
)
def test_what_is_no_pair_is_refused_by_its_place(pairs, error, message):
    with pytest.raises(error, match=message):
        model_of("encoder").compute_score(pairs)


def test_normalize_is_a_sigmoid_and_the_saved_activation_the_default():
    model, saved = model_of("encoder"), model_of("encoder", "model.activation=sigmoid")
    logits = model.compute_score(PAIRS)
    assert model.compute_score(PAIRS, normalize=False) == logits
    assert_close(model.compute_score(PAIRS, normalize=True), [1 / (1 + 2.718281828459045**-x) for x in logits])
    assert saved.compute_score(PAIRS) == model.compute_score(PAIRS, normalize=True)
    assert saved.compute_score(PAIRS, normalize=False) == logits


def test_rank_gives_places_in_the_input():
    model = model_of("encoder")
    documents = ["worms", "", "worms", "stones and " * 5]
    ranked = [tuple(item.values()) for item in model.rank("moles", documents, return_documents=True)]
    assert model.rank("moles", documents) == [{"corpus_id": index, "score": score} for index, score, _ in ranked]
    scores = model.compute_score([("moles", document) for document in documents])
    assert [(index, score) for index, score, _ in ranked] == sorted(enumerate(scores), key=lambda item: -item[1])
    assert [text for _, _, text in ranked] == [documents[index] for index, _, _ in ranked]
    repeated = [index for index, _, text in ranked if text == "worms"]
    assert repeated == [0, 2]  # ties in the order of the input
    assert model.rank("moles", documents, top_k=2) == model.rank("moles", documents)[:2]
    assert model.rank("moles", []) == []
    assert len(model.rank("moles", ["one"])) == 1
    with pytest.raises(TypeError, match="documents must be a list"):
        model.rank("moles", "worms")


def test_scoring_restores_the_training_state():
    model = model_of("encoder").train()
    model.base.dropout.p = 0.9
    assert model.compute_score(PAIRS) == model.compute_score(PAIRS)
    assert model.training


def test_long_documents_in_slices():
    """A document that fits scores as if cut; of a long one, every slice is read and the best counts."""
    plain, slicing = (model_of("decoder", "model.max_length=80", *keys) for keys in ((), SLICES))
    assert slicing.compute_score(PAIRS[1:]) == plain.compute_score(PAIRS[1:])
    budget = slicing.inputs.room - len("query: cats") - len("document: ")
    words = "".join(chr(97 + n % 26) for n in range(3 * budget))
    step = budget - budget // 4
    parts = [words[start : start + budget] for start in range(0, len(words) - budget + step, step)]
    assert parts[-1].endswith(words[-1])
    assert len(parts) == 4
    scores = plain.compute_score([("cats", part) for part in parts])
    assert slicing.compute_score(("cats", words)) == pytest.approx(max(scores), abs=1e-5)
    assert plain.compute_score(("cats", words)) == pytest.approx(scores[0], abs=1e-5)
    assert len({round(score, 5) for score in scores}) > 1


def test_too_little_memory_halves_the_batch(monkeypatch):
    model = model_of("encoder")
    expected = model.compute_score(PAIRS)
    sizes, forward = [], RerankerModel.forward

    def small(self, sequences):
        sizes.append(len(sequences))
        if len(sequences) > 1:
            raise torch.OutOfMemoryError("too much")
        return forward(self, sequences)

    monkeypatch.setattr(RerankerModel, "forward", small)
    assert_close(model.compute_score(PAIRS), expected, atol=1e-5, rtol=0)
    assert sizes == [4, 2, 1, 1, 2, 1, 1]


# what is refused before anything is scored


def test_length_above_the_positions_is_refused():
    """Sixty-four rows of a RoBERTa's table give 62 usable positions: they count from the pad id 1, plus one."""
    with pytest.raises(ValueError, match=r"model.max_length=63, but the model has 62 positions"):
        config = {"model_type": "roberta", **SIZES["roberta"], "max_position_embeddings": 64, "pad_token_id": 1}
        backbone = random_backbone({**config, "num_labels": 1}, family=AutoModelForSequenceClassification)
        RerankerModel(backbone, RerankerInputs(byte_tokenizer(), RerankerSettings(max_length=63)))


def test_a_head_of_three_labels_is_refused(tmp_path):
    config = {"model_type": "bert", **SIZES["bert"], "num_labels": 3}
    backbone = random_backbone(config, family=AutoModelForSequenceClassification)
    backbone.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(LoadingError, match="has 3 labels, but a reranker needs one"):
        rankpo.load(tmp_path, "cpu")


def test_another_architecture_than_the_head_says_is_refused():
    for family, head in (("bert", "decoder"), ("llama", "encoder")):
        with pytest.raises(ValueError, match=f"computes its score differently from model.head={head}"):
            tiny(family, byte_tokenizer(), head, suffix="" if head == "encoder" else "x")


# where weights come from, and where they go


def test_a_new_head_is_announced_and_drawn_from_the_seed(tmp_path):
    backbone = random_backbone({"model_type": "llama", **SIZES["llama"]})
    backbone.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    said, heads = [], []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        config = RerankerKind(name_or_path=str(tmp_path), head="decoder", max_length=70, separator="\n")
        heads.append(config.build(config.open_inputs(said.append), said.append).base.score.weight.detach().clone())
    assert "initialised at random from the run's seed: score.weight" in said
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    assert 0.005 < heads[0].std() < 0.05  # N(0, 0.02)


def test_the_tokenizers_pad_id_wins_and_no_token_is_added(tmp_path):
    """A tokenizer without a pad token gets a reserved one; the vocabulary keeps its size to the end."""
    tokenizer = llama()
    backbone = random_backbone({"model_type": "llama", **SIZES["llama"], "vocab_size": len(tokenizer)})
    backbone.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    said = []
    keys = {"head": "decoder", "max_length": 70, "separator": "\n", "suffix": "."}
    config = RerankerKind(name_or_path=str(tmp_path / "base"), **keys)
    model = config.build(config.open_inputs(said.append), said.append).eval()
    assert any("no pad token, so '<|reserved_0|>' is used" in message for message in said)
    assert model.base.config.pad_token_id == model.tokenizer.pad_token_id == 2
    saved(model, tmp_path / "FINAL", {})
    assert len(AutoTokenizer.from_pretrained(tmp_path / "FINAL")) == len(tokenizer) == len(llama())
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "FINAL")
    assert again.get_input_embeddings().num_embeddings == len(tokenizer)


def exported(tmp_path, name, *overrides) -> tuple[RerankerModel, Path]:
    model = model_of(name, *overrides)
    folder = tmp_path / "FINAL"
    one_label = "model.export_one_label=true" in overrides
    options = {"one_label": True} if one_label else {}
    assert saved(model, folder, {"exp_name": "a model", "loss": "a loss"}, **options) < 1e-5
    return model, folder


EXPORTS = [
    *((name,) for name in TINY),
    ("encoder", "model.activation=sigmoid"),
    ("encoder", "model.random.model_type=modernbert"),
    ("decoder", "model.query_format='{}'", "model.document_format='{}'"),
    ("yes_no", "model.readout='yes'"),
    ("yes_no", "model.export_one_label=true"),
    ("yes_no", "model.export_one_label=true", "model.readout='yes'"),
    *((name, "model.use_peft=true", "model.peft.lora_r=2") for name in TINY),
]


@pytest.mark.parametrize("keys", EXPORTS, ids=" ".join)
def test_final_scores_alike_everywhere(tmp_path, keys):
    """In rankpo from the folder alone, and in sentence-transformers' CrossEncoder; heads of formats stay with the text."""
    cross_encoder = pytest.importorskip("sentence_transformers").CrossEncoder
    model, folder = exported(tmp_path, *keys)
    expected = model.compute_score(PAIRS)
    loaded = rankpo.load(folder, "cpu")
    assert_close(loaded.compute_score(PAIRS), expected, atol=1e-5, rtol=0)
    heads = model.inputs.layout.query_prefix, model.inputs.layout.document_prefix
    theirs = cross_encoder(str(folder), device="cpu").predict([(heads[0] + q, heads[1] + d) for q, d in PAIRS])
    assert_close(torch.from_numpy(theirs), torch.tensor(expected), atol=1e-4, rtol=0)
    assert json.loads((folder / "rankpo.json").read_text())["kind"] == "reranker"


@pytest.mark.parametrize("name", ["encoder", "decoder"])
def test_final_scores_alike_in_plain_transformers(tmp_path, name):
    model, folder = exported(tmp_path, name)
    heads = model.inputs.layout.query_prefix, model.inputs.layout.document_prefix
    plain = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    queries, documents = [heads[0] + query for query, _ in PAIRS], [heads[1] + text for _, text in PAIRS]
    batch = AutoTokenizer.from_pretrained(folder)(queries, documents, padding=True, return_tensors="pt")
    assert not batch["attention_mask"].all()
    with torch.no_grad():
        scores = plain(**batch).logits[:, 0]
    assert_close(scores, torch.tensor(model.compute_score(PAIRS)), atol=1e-4, rtol=0)


def test_a_saved_model_needs_no_key_and_says_which_it_did_not_take(tmp_path):
    model, folder = exported(tmp_path, "decoder", "model.max_length=200")
    said = []
    config = RerankerKind(load_from=str(folder), max_length=512, activation="sigmoid", min_document_tokens=20)
    assert config.open_inputs(said.append, explicit={"min_document_tokens"}).settings == RerankerSettings(
        **{**model.settings.to_json(), "min_document_tokens": 20}
    )
    assert any(
        "was saved with max_length=200; this value is used instead of the yaml's 512" in message for message in said
    )
    assert any("model.min_document_tokens=20 instead of 16" in message for message in said)
    with pytest.raises(ValueError, match="settings has no 'beta'"):
        RerankerSettings.from_json({"beta": 1})


def test_an_end_that_transformers_cannot_find_is_an_export_error(tmp_path):
    """The suffix is the pad token: transformers reads the score one token too early."""
    model = tiny("mistral", sentencepiece(), suffix="</s>")
    with pytest.raises(ExportError, match="if the last token of a pair is the pad token"):
        saved(model, tmp_path / "FINAL", {})


@pytest.mark.parametrize(("name", "head"), [("decoder", ["score"]), ("encoder", ["pooler", "classifier"])])
def test_lora_trains_the_head_and_keeps_its_adapters(tmp_path, name, head):
    config = compose([*RERANKERS[name], "loss=dpo", "model.use_peft=true", "model.peft.lora_r=2"]).model
    model = config.build(config.open_inputs(quiet), quiet)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    whole = {name for name in trained if "lora" not in name}
    assert all(any(part in name for name in whole) for part in head)
    assert all(any(part in name for part in head) for name in whole)
    before = model.compute_score(PAIRS)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in trained:
                parameter.add_(torch.randn_like(parameter))
    changed = model.compute_score(PAIRS)
    assert max(abs(a - b) for a, b in zip(before, changed, strict=True)) > 1e-3
    with model.adapters_off():
        assert_close(model.compute_score(PAIRS), before)
    saved(model, tmp_path / "FINAL", {})
    assert (tmp_path / "FINAL" / "adapter" / "adapter_model.safetensors").exists()
    assert_close(rankpo.load(tmp_path / "FINAL", "cpu").compute_score(PAIRS), changed, atol=1e-4, rtol=1e-4)
    assert_close(model.compute_score(PAIRS), changed)


KNOWN = [name for name, kinds in table().items() if "reranker" in kinds]


def test_known_rerankers_are_counted():
    assert len(KNOWN) == 4


@pytest.mark.parametrize("name", KNOWN)
def test_the_settings_of_every_known_reranker_read_and_score(name):
    """Each one's settings on a tiny random model."""
    settings = dict(known_settings(name, "reranker"))
    family = "bert" if settings.get("head", "encoder") == "encoder" else "llama"
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    random = {"model_type": family, **sizes, "max_position_embeddings": 2048}
    words = {"yes_word": "y", "no_word": "n"} if settings.get("head") == "causal_lm" else {}
    torch.manual_seed(3)
    config = RerankerKind(random=random, **{**settings, **words})
    model = config.build(config.open_inputs(quiet), quiet).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    assert len(set(model.compute_score(PAIRS))) == len(PAIRS)


@pytest.mark.parametrize("name", TINY)
def test_half_precision_scores_are_float32_and_close(name):
    model = model_of(name)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        together = model(model.inputs.sequences_of(PAIRS))
        alone = torch.cat([model(model.inputs.sequences_of([pair])) for pair in PAIRS])
    assert together.dtype == torch.float32
    assert_close(together, alone, atol=2e-2, rtol=0)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "no source of weights is set"),
        ({"name_or_path": "x", "random": {"model_type": "bert"}}, "name_or_path and random are both set"),
        ({"name_or_path": "x", "trust_remote_code": "false"}, "trust_remote_code must be true or false, got 'false'"),
        ({"name_or_path": "x", "export_one_label": True}, "export_one_label=true needs head=causal_lm, .*got auto"),
        ({"name_or_path": "x", "chunk_tokens": 0}, "chunk_tokens must be >= 1 or null, got 0"),
        ({"name_or_path": "x", "layout": "flat"}, "layout must be one of auto, packed, padded, got 'flat'"),
        ({"name_or_path": "x", "peft": {"lora_r": 0}}, r"peft.lora_r must be >= 1, got 0"),
    ],
)
def test_keys_that_cannot_be_are_refused(keys, message):
    with pytest.raises(ValueError, match=message):
        RerankerKind(**keys)
