"""Checkpoints of sentence-transformers' CrossEncoder as rerankers: the same scores before training, after it, as FINAL."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

import rankpo
from rankpo.errors import ConfigError
from rankpo.models.loading import LoadingError, snapshot
from rankpo.models.random_weights import byte_tokenizer
from rankpo.models.reranker.config import RerankerKind
from tests.models.families import FAMILIES
from tests.models.test_checkpoints import folder_of
from tests.runs import train
from tests.tokenizers import qwen

st = pytest.importorskip("sentence_transformers")
modules = pytest.importorskip("sentence_transformers.cross_encoder.modules")

PAIRS = [("soil", "a field of wheat in the rain, and then nothing for a long while"), ("x", "y"), ("rain", "")]
# Either text, or both, are too long; the blanks at the ends are tokens.
PAIRS += [
    ("rain", "worms " * 30),
    ("rain " * 30, " worms "),
    ("rain " * 9, "worms " * 9),
    ("rain " * 30, "worms " * 30),
]
CASES = {
    "identity": ("bert", {"activation_fn": torch.nn.Identity()}),
    "sigmoid": ("bert", {}),
    "short": ("roberta", {"max_length": 40}),
    "prompt": ("bert", {"prompts": {"web": "search: "}, "default_prompt_name": "web"}),
    "distilbert": ("distilbert", {}),
    "modernbert": ("modernbert", {"activation_fn": torch.nn.Identity()}),
}


def cross_encoder(path, case):
    family, keys = CASES[case]
    torch.manual_seed(1)
    config = AutoConfig.for_model(family, **FAMILIES[family], vocab_size=260, pad_token_id=0, num_labels=1)
    model = AutoModelForSequenceClassification.from_config(config)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(path / "plain")
    byte_tokenizer().save_pretrained(path / "plain")
    made = st.CrossEncoder(str(path / "plain"), device="cpu", **keys)
    made.save_pretrained(str(path / "theirs"))
    return path / "theirs"


def compare(model, folder):
    theirs = st.CrossEncoder(str(folder), device="cpu").predict(PAIRS)
    np.testing.assert_allclose(model.compute_score(PAIRS), theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_scores_are_theirs_before_and_after_training_and_as_final(tmp_path, case):
    folder = cross_encoder(tmp_path, case)
    said = []
    kind = RerankerKind(name_or_path=str(folder), min_document_tokens=4)
    model = kind.build(kind.open_inputs(said.append), said.append).eval()
    assert any("(from CrossEncoder's files)" in line for line in said)
    assert model.settings.max_length == {"short": 40, "roberta": 78}.get(case, 80)
    compare(model, folder)
    train(
        "loss=pointwise", "kind=reranker", "model=base", f"model.name_or_path={folder}", "datasets=[toy_contrastive]",
        "trainer.max_steps=2", "trainer.batch_size=4", "optimizer.lr=0.01", f"cache_dir={tmp_path}", "exp_name=a",
        f"run_dir={tmp_path}/run", "model.min_document_tokens=4",
    )  # fmt: skip
    final = rankpo.load(tmp_path / "run" / "FINAL", "cpu")
    assert np.abs(np.array(final.compute_score(PAIRS)) - model.compute_score(PAIRS)).max() > 1e-4
    if case == "prompt":  # a format of pairs is the caller's in CrossEncoder
        theirs = st.CrossEncoder(str(tmp_path / "run" / "FINAL"), device="cpu").predict(
            [(f"search: {query}", document) for query, document in PAIRS]
        )
        np.testing.assert_allclose(final.compute_score(PAIRS), theirs, atol=1e-5, rtol=0)
    else:
        compare(final, tmp_path / "run" / "FINAL")


def test_the_forms_of_older_releases(tmp_path):
    """The activation in config.json, under two names, and the length as the tokenizer's."""
    folder = cross_encoder(tmp_path, "sigmoid")
    for name in ("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"):
        (folder / name).unlink(missing_ok=True)
    config = json.loads((folder / "config.json").read_text())
    config.pop("sentence_transformers", None)
    for key, value in (
        ("sentence_transformers", {"activation_fn": "torch.nn.modules.linear.Identity", "version": "4.1.0"}),
        ("sbert_ce_default_activation_function", "torch.nn.modules.linear.Identity"),
    ):
        (folder / "config.json").write_text(json.dumps({**config, key: value}))
        kind = RerankerKind(name_or_path=str(folder), activation="sigmoid", min_document_tokens=4)
        model = kind.build(kind.open_inputs(print), print).eval()
        assert model.settings.activation == "identity" and model.settings.max_length == 80
        compare(model, folder)


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_decoders_whose_config_removes_the_causal_mask(tmp_path, family):
    """The scores are theirs; windows without a causal mask are refused."""
    keys = {**FAMILIES[family], "is_causal": False}
    config = AutoConfig.for_model(family, **keys, vocab_size=260, pad_token_id=0, num_labels=1)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "plain")
    byte_tokenizer().save_pretrained(tmp_path / "plain")
    st.CrossEncoder(str(tmp_path / "plain"), device="cpu").save_pretrained(str(tmp_path / "theirs"))
    if family == "llama":
        compare(rankpo.load(tmp_path / "theirs", "cpu"), tmp_path / "theirs")
        return
    with pytest.raises(LoadingError, match=r"sliding windows of 5 tokens, .*; choose another model"):
        rankpo.load(tmp_path / "theirs", "cpu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Tanh"}},
            "activation torch.nn.modules",
        ),
        ({"architectures": ["LayerWiseMiniCPMForCausalLM"]}, "reads scores from several layers"),
    ],
)
def test_what_would_give_other_scores_is_refused(tmp_path, change, message):
    folder = cross_encoder(tmp_path, "sigmoid")
    for name in ("modules.json", "config_sentence_transformers.json"):
        (folder / name).unlink(missing_ok=True)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises((ConfigError, LoadingError), match=message):
        RerankerKind(name_or_path=str(folder)).open_inputs(print)


ROLES = (
    "{% for m in messages %}{% if m.role == 'system' %}<|im_start|>system\n{{ m.content }}<|im_end|>\n"
    "{% elif m.role == 'query' %}<|im_start|>user\n<Query>: {{ m.content }}\n"
    "{% else %}<Document>: {{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LONG = [*PAIRS[:2], ("how deep do moles dig?", "Moles dig to about 70 cm."), ("rain", "worms " * 90)]


def rendered(path, words, prompt, template=ROLES, generation=True):
    """A folder of a model whose tokenizer renders the pair. words: its answers, () for a classifier."""
    tokenizer = qwen()
    tokenizer.chat_template = template
    keys = {**FAMILIES["qwen3"], "max_position_embeddings": 200, "vocab_size": 420, "pad_token_id": 0, "num_labels": 1}
    torch.manual_seed(1)
    family = AutoModelForCausalLM if words else AutoModelForSequenceClassification
    model = family.from_config(AutoConfig.for_model("qwen3", **keys))
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(path / "plain")
    tokenizer.save_pretrained(path / "plain")
    task = "text-generation" if words else "sequence-classification"
    arguments = {"chat_template": {"add_generation_prompt": generation}}
    first = modules.Transformer(
        str(path / "plain"), transformer_task=task, max_seq_length=100, processing_kwargs=arguments
    )
    ids = [tokenizer.encode(word, add_special_tokens=False)[0] for word in words]
    last = [modules.LogitScore(*ids)] if words else []
    prompts = {"prompts": {"web": prompt}, "default_prompt_name": "web"} if prompt else {}
    st.CrossEncoder(modules=[first, *last], device="cpu", **prompts).save_pretrained(str(path / "theirs"))
    return path / "theirs"


@pytest.mark.parametrize("prompt", ["", "Judge the pair."])
@pytest.mark.parametrize("words", [("yes", "no"), ("no", "yes"), ("yes",), ()])
def test_a_chat_template_that_renders_the_pair(tmp_path, words, prompt):
    """The newer form of Qwen3-Reranker: roles query and document, the prompt as a system turn, answers by their ids."""
    folder = rendered(tmp_path, words, prompt)
    model = rankpo.load(folder, "cpu")
    theirs = st.CrossEncoder(str(folder), device="cpu")
    expected = np.concatenate([theirs.predict([pair]) for pair in LONG])
    np.testing.assert_allclose(model.compute_score(LONG), expected, atol=1e-5, rtol=0)
    assert model.settings.max_length == 100 and model.settings.activation == "sigmoid"
    if words:
        assert (model.settings.yes_word, model.settings.head) == (words[0], "causal_lm")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ messages[-1].content }}{{ messages[-2].content }}", "it omits, repeats or reorders them"),
        ("{{ messages[0].content }}", "it omits, repeats or reorders them"),
        ("{% for m in messages %}{{ m.content | upper }} {% endfor %}", "cannot reproduce|omits, repeats"),
        ("{ {% for m in messages %}{{ m.content }} {% endfor %}", "is not one token of its own"),
    ],
)
def test_templates_that_no_formats_reproduce_are_refused(tmp_path, template, message):
    folder = rendered(tmp_path, ("yes", "no"), "")
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(ConfigError, match=message):
        RerankerKind(name_or_path=str(folder)).open_inputs(print)


def test_other_arguments_of_the_tokenizer_are_refused_by_name(tmp_path):
    folder = rendered(tmp_path, (), "")
    path = folder / "sentence_bert_config.json"
    config = json.loads(path.read_text())
    for changed, message in (
        ({"text": {"padding": "max_length"}}, "processing_kwargs.text is not supported"),
        ({"chat_template": {"tools": []}}, "the argument tools of the chat template is not supported"),
    ):
        path.write_text(json.dumps({**config, "processing_kwargs": changed}))
        with pytest.raises(ConfigError, match=message):
            RerankerKind(name_or_path=str(folder)).open_inputs(print)


def test_a_plain_folder_has_the_limits_of_its_files(tmp_path):
    cross_encoder(tmp_path, "sigmoid")
    assert rankpo.load(tmp_path / "plain", "cpu").settings.max_length == 80


def test_an_embedding_model_becomes_a_reranker_with_a_new_head(tmp_path):
    """Its sentence-transformers files are of another kind, and are not read."""
    said = []
    kind = RerankerKind(name_or_path=str(folder_of(tmp_path, "mean")), max_length=60, min_document_tokens=4)
    kind.build(kind.open_inputs(said.append), said.append)
    assert any("initialised at random from the run's seed" in line for line in said)


def test_hub_ids_are_read_as_folders_are(tmp_path, monkeypatch):
    """Downloaded without pickles; kind and settings come from its files."""
    folders = {"owner/embedding": folder_of(tmp_path, "cls"), "owner/pairs": cross_encoder(tmp_path / "b", "short")}
    asked = []

    def download(name, *, allow_patterns, **options):
        asked.append(allow_patterns)
        return str(folders[name])

    monkeypatch.setattr("rankpo.models.loading.snapshot_download", download)
    snapshot.cache_clear()
    try:
        embedding, pairs = rankpo.load("owner/embedding", "cpu"), rankpo.load("owner/pairs", "cpu")
    finally:
        snapshot.cache_clear()
    assert embedding.settings.pooling == "cls" and pairs.settings.max_length == 40
    assert len(asked) == 2 and not any(
        "bin" in pattern or "pt" in pattern for patterns in asked for pattern in patterns
    )


def test_a_hub_id_that_cannot_be_reached():
    with pytest.raises(LoadingError, match=r"cannot load owner/nothing: .*check the hub id and the network"):
        rankpo.load("owner/nothing")
    with pytest.raises(LoadingError, match="nowhere: no such folder"):
        rankpo.load("nowhere")
