"""judge=local: the letters' log-probabilities against transformers' own, and what is no language model is refused."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BertConfig, BertForSequenceClassification

from rankpo.judges.base import JudgeStopped
from rankpo.judges.letters import letter_ids
from rankpo.judges.local import LocalJudge
from rankpo.judges.templates import Template
from rankpo.models.random_weights import byte_tokenizer
from tests.judges import language_model
from tests.runs import train
from tests.toy_tokenizers import CHATML, byte_bpe

TEMPLATE = Template(prompt="{query}|{passage_a}|{passage_b}")
TEXTS = ["a red fox", "a blue whale and more", "nothing of note", "a den"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    language_model.write(path)
    return path


def by_transformers(folder, a: str, b: str) -> tuple[str, int]:
    """The likelier letter behind "Preferred: ", and its share of both, in percent: the whole prompt as one text."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    prompt = f"<|im_start|>user\nq|{a}|{b}<|im_end|>\n<|im_start|>assistant\nPreferred: "
    ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, -1]
    first, second = (float(logits[tokenizer.convert_tokens_to_ids(letter)].exp()) for letter in "AB")
    return ("A", round(100 * first / (first + second))) if first >= second else (
        "B", round(100 * second / (first + second))
    )  # fmt: skip


def test_the_likelier_letter_with_its_share(folder):
    judge = LocalJudge(path=str(folder), template=TEMPLATE, device="cpu")
    pairs = [(a, b) for a in TEXTS for b in TEXTS if a != b]
    found = [judge.ask(judge.request("q", a, b)).text for a, b in pairs]
    expected = [by_transformers(folder, a, b) for a, b in pairs]
    assert found == [f"Preferred: {letter}\nConfidence score: {share}" for letter, share in expected]
    assert {letter for letter, _ in expected} == {"A", "B"}


def test_letters_of_one_token_with_a_blank_in_front_or_within():
    """One token per byte: the blank is a token between; with a merge of blank and letter there is nothing between."""
    lead, letters = letter_ids(byte_tokenizer())
    assert byte_tokenizer().convert_ids_to_tokens([*lead, *letters]) == ["Ġ", "A", "B"]
    merged = byte_bpe("ĠA", "ĠB", template=CHATML)
    lead, letters = letter_ids(merged)
    assert (lead, merged.convert_ids_to_tokens(letters)) == ([], ["ĠA", "ĠB"])


def test_letters_that_are_not_told_apart_are_refused():
    """Merged with the colon, the letter stands at different places."""
    with pytest.raises(ValueError, match="does not tell 'Preferred:' A and B apart"):
        letter_ids(byte_bpe("ĠA", template=CHATML))


def test_a_cross_encoder_is_no_language_model(tmp_path):
    """transformers would load it with a random head, and its answers would be chance."""
    tokenizer = byte_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        num_labels=1,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    judge = LocalJudge(path=str(tmp_path), template=TEMPLATE, device="cpu")
    with pytest.raises(JudgeStopped, match=r"BertForSequenceClassification.*judge=scores judge\.path="):
        judge.ask(judge.request("q", "a", "b"))


def test_a_folder_that_is_not_there_is_named():
    with pytest.raises(FileNotFoundError, match="path=/nowhere/model: no such folder"):
        LocalJudge(path="/nowhere/model", template=TEMPLATE)


def test_as_a_task_it_costs_tokens(folder, tmp_path):
    """The jobs world, judged by chance: pairs, calls and tokens add up."""
    data = ["datasets=[jobs]", "datasets.jobs.num_profiles=40", "datasets.jobs.num_posts=3"]
    judge = ["judge=local", f"judge.path={folder}", "judge.device=cpu", "judge.template.max_characters=40"]
    keys = ["task.pairs.per_query=2", "task.on_disagreement=keep"]
    train("task=annotate", "model=tiny_bert", *data, *judge, *keys, f"cache_dir={tmp_path}", "exp_name=a")
    output = tmp_path / "a" / "annotate"
    report = json.loads((output / "report.json").read_text())
    lines = [json.loads(line) for line in (output / "cost.jsonl").read_text().splitlines()]
    assert report["pairs"] == len((output / "preferences.jsonl").read_text().splitlines()) >= 2
    assert report["cost"]["calls"] == len(lines) == 2 * report["pairs"]
    assert report["cost"]["tokens"]["prompt_tokens"] == sum(line["usage"]["prompt_tokens"] for line in lines)
