"""task=export of one part of a hybrid model: a folder of its own kind, with equal scores here and in sentence-transformers."""

import json

import pytest
import torch
from torch.testing import assert_close

import rankpo
from rankpo.errors import ConfigError
from rankpo.models.hybrid.saving import HybridFolder
from rankpo.models.inputs import TextInputs
from rankpo.models.saving import save
from rankpo.tasks.work.export_part import model_of_part
from rankpo.types import Vectors
from tests.models.hybrid.test_hybrid import QUERIES, TEXTS, hybrid
from tests.runs import train
from tests.tokenizers import qwen

PROMPTS = {"query_prompt": "ask: ", "passage_prompt": "text: "}
PARTS = {"dense": "embedding", "colbert": "late_interaction", "sparse": "hybrid"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("hybrid") / "whole"
    save(place, hybrid(colbert_dim=8, **PROMPTS), HybridFolder(), {"loss": "m3"})
    return place


def exported(folder, part, *overrides, name=None):
    words = ("task=export", "kind=hybrid", "model=base", f"model.load_from={folder}", f"task.part={part}")
    runs = (f"runs_dir={folder.parent}", f"cache_dir={folder.parent}", f"exp_name={name or part}")
    return train(*words, *runs, *overrides).run_dir / "FINAL"


def scores(model):
    made = []
    for texts, role in ((QUERIES, "query"), (TEXTS, "candidate")):
        sequences = model.inputs.sequences_of(texts, role)
        made.append(Vectors(model.encode_sequences(sequences), model.counts(sequences)))
    return model.similarity(*made)


@pytest.mark.parametrize("part", PARTS)
def test_the_scores_are_those_of_the_part(folder, part):
    found = exported(folder, part)
    model = rankpo.load(found, "cpu")
    assert model.kind == PARTS[part] and model.settings.passage_prompt == "text: "
    alone = hybrid(colbert_dim=8, **PROMPTS, parts=[part], **{f"{part}_weight": 1.0})
    assert_close(scores(model), scores(alone), rtol=1e-4, atol=1e-5)
    record = json.loads((found / "rankpo.json").read_text())
    assert record["export"]["part"] == part and record["loss"] == "m3"


@pytest.mark.parametrize(("part", "name"), [("dense", "SentenceTransformer"), ("colbert", "MultiVectorEncoder")])
def test_sentence_transformers_loads_it(folder, part, name):
    library = pytest.importorskip("sentence_transformers")
    theirs = getattr(library, name)(str(exported(folder, part, name=f"{part} for {name}")), device="cpu")
    found = theirs.similarity(theirs.encode_query(QUERIES), theirs.encode_document(TEXTS))
    alone = hybrid(colbert_dim=8, **PROMPTS, parts=[part])
    assert_close(torch.as_tensor(found), scores(alone), rtol=1e-4, atol=1e-5)


def test_every_alpha_has_its_own_projection(folder):
    with torch.no_grad():
        start = hybrid(colbert_dim=8)
        start.colbert_linear.weight.neg_()
    save(folder.parent / "start", start, HybridFolder(), {})
    mixed = (f"task.start={folder.parent}/start", "task.alphas=[0,1]", "task.dtype=bfloat16")
    found = exported(folder, "colbert", *mixed, name="mixed").parent
    weights = [rankpo.load(found / f"alpha-{alpha}/FINAL", "cpu").layers[0].linear.weight for alpha in (0, 1)]
    assert torch.equal(weights[0], -weights[1]) and weights[0].abs().max() > 0


def test_what_cannot_be_exported_is_refused(folder):
    with pytest.raises(ConfigError, match="part must be one of dense, sparse, colbert or null, got 'title'"):
        exported(folder, "title")
    with pytest.raises(ConfigError, match="is a part of a hybrid model, and this one is of kind embedding"):
        exported(exported(folder, "dense", name="to refuse"), "dense", "kind=embedding", name="refused")


def test_token_vectors_without_a_first_special_token_are_refused():
    whole = hybrid()
    whole.inputs = TextInputs(qwen(), whole.settings)
    with pytest.raises(ConfigError, match="the tokenizer puts no special token of its own first"):
        model_of_part("colbert", whole, print)
