"""Late interaction beside sentence-transformers' MultiVectorEncoder: the same vectors and scores, in both directions."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

import rankpo
from rankpo.errors import ConfigError
from rankpo.models.late_interaction.config import LateInteractionKind
from rankpo.models.load import ignore
from rankpo.models.loading import LoadingError
from rankpo.models.random_weights import byte_tokenizer
from tests.models.families import backbone
from tests.tokenizers import bert

st = pytest.importorskip("sentence_transformers")
pytest.importorskip("sentence_transformers.multi_vector_encoder")
from sentence_transformers.base.modules import Normalize, Transformer  # noqa: E402
from sentence_transformers.base.modules.dense import Dense  # noqa: E402
from sentence_transformers.multi_vector_encoder.modules import (  # noqa: E402
    HierarchicalTokenPooling,
    MultiVectorMask,
)

QUERIES = ["soil", "what, rain?", "x", "a very long query about ploughs and fields"]
PASSAGES = ["a field of wheat, in the rain.", "!", "ploughing", "x " * 70, ""]
PLAIN = {"bias": False, "activation_function": torch.nn.Identity(), "module_input_name": "token_embeddings"}
FIXED = {"strategy": "fixed", "length": 24, "token": "a"}
PROMPTS = {"query": "[Q] ", "document": "[D] "}
# family, keys of the Transformer, words that are skipped, further keys
CASES = {
    "plain": ("bert", {}, [], {}),
    "lengths": ("bert", {"query_length": 9, "document_length": 40}, [], {}),
    "markers": ("bert", {}, [], {"prompts": PROMPTS}),
    "fixed": ("bert", {"query_expansion": FIXED}, [], {"prompts": PROMPTS}),
    "fixed, attended": ("bert", {"query_expansion": {**FIXED, "attend": True}}, [], {}),
    "fixed, eos": ("bert", {"query_expansion": {**FIXED, "token": None}}, [], {}),
    "min": ("bert", {"query_expansion": {**FIXED, "strategy": "min"}, "query_length": 40}, [], {}),
    "skipped": ("bert", {}, [",", ".", "!", "mole"], {}),
    "skipped on both sides": ("bert", {"query_expansion": FIXED}, [",", "?"], {"tasks": ["query", "document"]}),
    "divided": ("bert", {"query_expansion": FIXED}, [","], {"similarity_fn_name": "meanmaxsim"}),
    "not normalised": ("bert", {}, [], {"normalise": False}),
    "no projection": ("bert", {}, [], {"layers": []}),
    "two layers": ("bert", {}, [], {"layers": [Dense(24, 30, **{**PLAIN, "bias": True}), Dense(30, 9, **PLAIN)]}),
    "residual": ("bert", {}, [], {"layers": [Dense(24, 10, use_residual=True, **PLAIN)]}),
    "roberta": ("roberta", {"query_expansion": FIXED}, [","], {}),
    "modernbert": ("modernbert", {"query_expansion": FIXED}, [","], {"prompts": PROMPTS}),
    "distilbert": ("distilbert", {"query_expansion": FIXED}, [], {}),
    "llama": ("llama", {"query_expansion": FIXED}, [","], {}),
    "mistral": ("mistral", {"query_expansion": {**FIXED, "attend": True}}, [], {}),
    "gpt2": ("gpt2", {"query_expansion": {**FIXED, "strategy": "min", "length": 12}}, [], {}),
}


QUICK = ("markers", "fixed", "min", "skipped", "divided", "two layers", "modernbert", "llama")  # in the default suite


def marked(cases, quick):
    """The cases as parameters, those that are not quick marked as slow."""
    return [case if case in quick else pytest.param(case, marks=pytest.mark.slow) for case in cases]


def folder_of(path, case):
    """A folder that sentence-transformers wrote, with random weights."""
    family, keys, words, more = CASES[case]
    backbone(family).save_pretrained(path / "plain")
    byte_tokenizer().save_pretrained(path / "plain")
    torch.manual_seed(3)
    layers = more.get("layers", [Dense(24, 8, **PLAIN)])
    for layer in layers:
        for parameter in layer.parameters():
            torch.nn.init.normal_(parameter, std=0.4)
    transformer = Transformer(str(path / "plain"), max_seq_length=60, **keys)
    transformer.model.config.use_cache = False
    ends = [Normalize("token_embeddings")] if more.get("normalise", True) else []
    model = st.MultiVectorEncoder(
        modules=[transformer, *layers, MultiVectorMask(words, skiplist_tasks=more.get("tasks")), *ends],
        prompts=more.get("prompts"),
        similarity_fn_name=more.get("similarity_fn_name"),
        device="cpu",
    )
    model.save(str(path / "theirs"))
    shutil.rmtree(path / "plain")
    return path / "theirs"


def compare(model, folder):
    """Vectors of both roles and all scores within 1e-5 of sentence-transformers' own for the same folder."""
    theirs = st.MultiVectorEncoder(str(folder), device="cpu")
    asked, given = theirs.encode_query(QUERIES), theirs.encode_document(PASSAGES)
    for role, texts, expected in (("query", QUERIES, asked), ("passage", PASSAGES, given)):
        for ours, reference in zip(model.encode(texts, role), expected, strict=True):
            assert_close(torch.from_numpy(ours), reference, atol=1e-5, rtol=0)
    expected = theirs.similarity(asked, given)
    scale = 1e-5 * max(1.0, float(expected.abs().max()) if not model.settings.normalize else 1.0)
    assert_close(torch.from_numpy(model.scores(QUERIES, PASSAGES)), expected, atol=scale, rtol=0)
    pairs = [model.encode_packed(texts, role) for texts, role in ((QUERIES, "query"), (PASSAGES[:4], "passage"))]
    assert_close(model.paired(*pairs), expected.diagonal(), atol=scale, rtol=0)


@pytest.mark.parametrize("case", marked(CASES, QUICK))
def test_scores_are_theirs_and_theirs_are_those_of_final(tmp_path, case):
    folder = folder_of(tmp_path, case)
    lines = []
    kind = LateInteractionKind(load_from=str(folder))
    model = kind.build(kind.open_inputs(lines.append), lines.append).eval()
    assert ("mole" in CASES[case][2]) == any("model.skip lists mole" in line for line in lines)
    compare(model, folder)
    kind.save(tmp_path / "FINAL", model, {})
    compare(rankpo.load(tmp_path / "FINAL", "cpu"), tmp_path / "FINAL")


@pytest.mark.parametrize("layout", marked(["packed", "padded"], ["padded"]))
def test_both_layouts_leave_the_expansion_unattended(tmp_path, layout):
    folder = folder_of(tmp_path, "fixed")
    kind = LateInteractionKind(load_from=str(folder), layout=layout)
    model = kind.build(kind.open_inputs(ignore), ignore).eval()
    assert model.packed == (layout == "packed")
    compare(model, folder)
    sequences = model.inputs.sequences_of(QUERIES, "query")
    assert sequences.attended.tolist() == [10, 17, 7, 24]  # [CLS] [Q] and a space, a token per byte, [SEP]
    assert model.counts(sequences).tolist() == [24] * 4


def pylate(path, general, name="fixed"):
    """The folder as PyLate up to 3 writes it: Transformer and its own Dense, and keys beside."""
    folder = folder_of(path, name)
    modules = json.loads((folder / "modules.json").read_text())[:2]
    modules[0]["type"], modules[1]["type"] = "sentence_transformers.models.Transformer", "pylate.models.Dense.Dense"
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 39, "do_lower_case": False}))
    dense = json.loads((folder / "1_Dense" / "config.json").read_text())
    kept = {key: value for key, value in dense.items() if not key.startswith("module_")}
    (folder / "1_Dense" / "config.json").write_text(json.dumps(kept))
    stated = {"__version__": {}, "model_type": "ColBERT", "prompts": {}, "default_prompt_name": None}
    (folder / "config_sentence_transformers.json").write_text(
        json.dumps({**stated, "similarity_fn_name": "MaxSim", **general})
    )
    for name in ("2_MultiVectorMask", "3_Normalize"):
        shutil.rmtree(folder / name)
    return folder


MARKED = {"query_prefix": "[Q] ", "document_prefix": "[D] "}
PYLATE = {
    "expanded": {**MARKED, "query_length": 24, "document_length": 40, "do_query_expansion": True},
    "attended": {**MARKED, "query_length": 24, "document_length": 40, "attend_to_expansion_tokens": True},
    "not expanded": {**MARKED, "query_length": 20, "document_length": 30, "do_query_expansion": False},
    "own skip list": {**MARKED, "query_length": 24, "document_length": 40, "skiplist_words": ["w", "."]},
    "defaults": {},
}


@pytest.mark.parametrize("case", marked(PYLATE, ("expanded", "not expanded", "attended")))
def test_folders_of_pylate(tmp_path, case):
    folder = pylate(tmp_path, PYLATE[case])
    tokenizer = byte_tokenizer()
    if case == "attended":  # PyLate adds the marker "[Q] " to the vocabulary as one token.
        tokenizer.add_tokens(["[Q] ", "[D] "])
        resize(folder, len(tokenizer))
    tokenizer.save_pretrained(folder)
    model = rankpo.load(folder, "cpu")
    assert type(model).__name__ == "LateInteractionModel"
    if case == "attended":
        assert model.inputs.sequences_of(["ab"], "query").attended is None
        assert model.inputs.sequences_of(["ab"], "candidate").lengths.tolist() == [5]
    compare(model, folder)
    LateInteractionKind(load_from=str(folder)).save(tmp_path / "FINAL", model, {})
    compare(rankpo.load(tmp_path / "FINAL", "cpu"), tmp_path / "FINAL")


def resize(folder, size):
    tensors = load_file(folder / "model.safetensors")
    old = tensors["embeddings.word_embeddings.weight"]
    more = torch.randn(size - len(old), old.shape[1], generator=torch.Generator().manual_seed(5))
    tensors["embeddings.word_embeddings.weight"] = torch.cat([old, more])
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": size}))


def stanford(path, metadata):
    """A folder of Stanford ColBERT: BERT and the projection in one file, markers of the vocabulary."""
    tokenizer = bert()
    tokenizer.add_tokens(["[unused0]", "[unused1]", "[MASK]"])
    tokenizer.mask_token = "[MASK]"
    model = backbone("bert", vocab_size=len(tokenizer))
    tokenizer.save_pretrained(path)
    tensors = {f"bert.{name}": tensor.contiguous() for name, tensor in model.state_dict().items()}
    tensors["linear.weight"] = torch.randn(8, 24, generator=torch.Generator().manual_seed(4))
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    config = {**model.config.to_dict(), "architectures": ["HF_ColBERT"]}
    (path / "config.json").write_text(json.dumps(config))
    if metadata is not None:
        (path / "artifact.metadata").write_text(json.dumps(metadata))
    return path


STANFORD = {
    "stated": {"query_maxlen": 24, "doc_maxlen": 40, "dim": 8, "similarity": "cosine", "query_token_id": "[unused0]"},
    "attended": {"query_maxlen": 20, "attend_to_mask_tokens": True, "mask_punctuation": False, "doc_maxlen": 50},
    "other markers": {"query_token_id": "[unused1]", "doc_token_id": "[unused0]", "doc_maxlen": 30},
    "no metadata": None,
}


@pytest.mark.parametrize("case", marked(STANFORD, ("stated", "no metadata")))
def test_folders_of_stanford_colbert(tmp_path, case):
    folder = tmp_path / "stanford"
    folder.mkdir()
    model = rankpo.load(stanford(folder, STANFORD[case]), "cpu")
    head = model.inputs.sequences_of(["moles"], "query").input_ids[:3].tolist()
    marker = (STANFORD[case] or {}).get("query_token_id", "[unused0]")
    assert head[1] == model.tokenizer.convert_tokens_to_ids(marker)
    compare(model, folder)
    LateInteractionKind(load_from=str(folder)).save(tmp_path / "FINAL", model, {})
    compare(rankpo.load(tmp_path / "FINAL", "cpu"), tmp_path / "FINAL")


def edit(path, **keys):
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


REFUSED = {
    "mask": ("2_MultiVectorMask/config.json", {"keep_only_token_ids": [3]}, "keep_only_token_ids is for images"),
    "sides": ("2_MultiVectorMask/config.json", {"skiplist_words": ["a"], "skiplist_tasks": ["query"]}, "skiplist_tasks="),
    "mask key": ("2_MultiVectorMask/config.json", {"skip_first": 1}, "has no 'skip_first'"),
    "dense place": ("1_Dense/config.json", {"module_input_name": "sentence_embedding"}, "it must be token_embeddings"),
    "activation": ("1_Dense/config.json", {"activation_function": "mine.Act"}, "activation_function has no 'mine.Act'"),
    "normalise": ("3_Normalize/config.json", {"module_input_name": "other"}, "it must be token_embeddings"),
    "expansion": ("sentence_bert_config.json", {"query_expansion": {"strategy": "max", "length": 4}}, "strategy must be fixed or min"),
    "expansion key": ("sentence_bert_config.json", {"query_expansion": {"strategy": "min", "size": 4}}, "has no 'size'"),
    "transformer": ("sentence_bert_config.json", {"processing_kwargs": {"text": {"truncation": False}}}, "processing_kwargs"),
    "similarity": ("config_sentence_transformers.json", {"similarity_fn_name": "cosine"}, "maxsim or meanmaxsim"),
    "general": ("config_sentence_transformers.json", {"xtr_top_k": 3}, "has no 'xtr_top_k'"),
    "side": ("tokenizer_config.json", {"padding_side": "left"}, "pads on the left"),
}  # fmt: skip


@pytest.fixture(scope="module")
def expanded(tmp_path_factory):
    """A folder of sentence-transformers with query expansion."""
    return folder_of(tmp_path_factory.mktemp("expanded"), "fixed")


@pytest.mark.parametrize("case", REFUSED)
def test_what_rankpo_does_not_do_is_refused_by_name(tmp_path, expanded, case):
    file, keys, message = REFUSED[case]
    folder = shutil.copytree(expanded, tmp_path / "theirs")
    edit(folder / file, **keys)
    with pytest.raises((ConfigError, LoadingError), match=message):
        rankpo.load(folder, "cpu")


def test_pooling_within_the_model_and_other_code_are_refused(tmp_path):
    folder = folder_of(tmp_path, "plain")
    model = st.MultiVectorEncoder(str(folder), device="cpu")
    model.append(HierarchicalTokenPooling(2))
    model.save(str(tmp_path / "pooled"))
    with pytest.raises(ConfigError, match=r"modules .*HierarchicalTokenPooling; .* task\.pool_factor=2"):
        rankpo.load(tmp_path / "pooled", "cpu")
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["type"] = "mine.Dense"
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ConfigError, match=r"does not run the code of mine\.Dense"):
        rankpo.load(folder, "cpu")


def test_metadata_of_another_interaction_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"similarity='l2' is not supported; rankpo needs similarity=cosine"):
        rankpo.load(stanford(tmp_path, {"similarity": "l2"}), "cpu")


@pytest.mark.parametrize("case", ["plain", "two layers"])
def test_a_projection_of_other_sizes_is_refused_by_name(tmp_path, case):
    kind = LateInteractionKind(load_from=str(folder_of(tmp_path, case)), dim=7)
    with pytest.raises((ConfigError, LoadingError), match=r"differs from config.json|dim=7, but"):
        kind.build(kind.open_inputs(ignore, {"dim"}), ignore)


def test_an_embedding_model_is_a_start_with_its_prompts(tmp_path):
    from sentence_transformers.sentence_transformer.modules import Pooling

    backbone("bert").save_pretrained(tmp_path / "plain")
    byte_tokenizer().save_pretrained(tmp_path / "plain")
    modules = [Transformer(str(tmp_path / "plain")), Pooling(24, "mean")]
    st.SentenceTransformer(modules=modules, prompts={"query": "find: ", "document": "text: "}).save(str(tmp_path / "e"))
    lines = []
    kind = LateInteractionKind(load_from=str(tmp_path / "e"), passage_max_length=50)
    model = kind.build(kind.open_inputs(lines.append), lines.append).eval()
    assert (model.settings.query_prompt, model.settings.passage_prompt, model.dim) == ("find: ", "text: ", 128)
    assert any("with a new projection for token vectors" in line for line in lines)
    assert_close(model.base.state_dict(), backbone("bert").state_dict())
