"""The card: a head that hubs read, code that runs as it stands, no path of this machine."""

import re

import pytest
import yaml
from huggingface_hub import ModelCard

from rankpo.models.embedding.saving import embedding_card as card
from rankpo.models.embedding.settings import EmbeddingSettings
from rankpo.models.model_card import public_name
from tests.models.saved import saved
from tests.models.test_export import model_of

DESCRIPTION = {
    "exp_name": "field trial: 3",
    "base_model": "sentence-transformers/all-MiniLM-L6-v2",
    "loss": "RankPOLoss",
    "loss_values": {"beta": 2.0},
    "data": {"jobs": "abc"},
    "seed": 42,
    "metrics_before": {"jobs_dev/ndcg@20": 0.5},
    "metrics_after": {"jobs_dev/ndcg@20": 0.61234, "jobs_dev/mrr@10": 0.7},
}


def head(text):
    return yaml.safe_load(text.split("---\n")[1])


def test_head_is_yaml():
    written = head(card(EmbeddingSettings(), DESCRIPTION))
    assert written["library_name"] == "sentence-transformers"
    assert written["pipeline_tag"] == "sentence-similarity"
    assert written["base_model"] == DESCRIPTION["base_model"]
    assert "rankpo" in written["tags"]


def test_the_head_holds_a_model_index():
    """As the hub's own reader of cards understands it."""
    text = card(EmbeddingSettings(), {**DESCRIPTION, "license": "apache-2.0", "datasets": ["me/jobs"]})
    data = ModelCard(text).data
    assert data.license == "apache-2.0" and data.datasets == ["me/jobs"] and data.model_name == "field trial: 3"
    found = {(result.dataset_name, result.metric_name): result.metric_value for result in data.eval_results}
    assert found == {("jobs_dev", "ndcg@20"): 0.61234, ("jobs_dev", "mrr@10"): 0.7}
    assert "model-index" not in head(card(EmbeddingSettings(), {**DESCRIPTION, "metrics_after": {}}))


@pytest.mark.parametrize("base", [None, "random weights", "FINAL"])
def test_a_base_that_no_hub_has_is_not_in_the_head(base):
    assert "base_model" not in head(card(EmbeddingSettings(), {**DESCRIPTION, "base_model": base}))


def test_metrics_stand_before_and_after():
    text = card(EmbeddingSettings(), DESCRIPTION)
    assert "| jobs_dev/ndcg@20 | 0.5000 | 0.6123 |" in text
    assert "| jobs_dev/mrr@10 |  | 0.7000 |" in text


def test_prompts_and_lengths_are_told():
    settings = EmbeddingSettings(query_prompt='say "q":\n', query_max_length=77, passage_max_length=99, pooling="last")
    text = card(settings, DESCRIPTION)
    assert r'Query prompt: "say \"q\":\n"' in text
    assert "last pooling" in text and "77 tokens" in text and "99" in text


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("/data/models/base", "base"),
        ("./runs/a/FINAL", "FINAL"),
        ("~/x", "x"),
        ("org/model", "org/model"),
        (None, None),
    ],
)
def test_public_name(given, shown):
    assert public_name(given) == shown


def test_its_code_runs(tmp_path):
    """All three libraries, as written, with the folder's name put in."""
    pytest.importorskip("sentence_transformers")
    saved(model_of(normalize=False), tmp_path / "FINAL", DESCRIPTION)
    (code,) = re.findall(r"```python\n(.*?)```", (tmp_path / "FINAL" / "README.md").read_text(), flags=re.DOTALL)
    assert code.count('"FOLDER"') == 4
    names = {}
    exec(code.replace("FOLDER", str(tmp_path / "FINAL")), names)
    assert names["scores"].shape == (1, 1)
    assert type(names["backbone"]).__name__ == "BertModel"
