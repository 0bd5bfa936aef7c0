"""Prompt templates and settings of listwise rerankers: what ships, what RankLLM writes, what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rankpo.data.text.prompt_templates import PromptTemplate, read_template, shipped
from rankpo.models.listwise.settings import ListwiseSettings
from rankpo.models.random_weights import byte_tokenizer
from tests.data.test_listwise_inputs import SETTINGS, TEMPLATE, inputs_of, read


def test_every_shipped_template_is_read_and_rendered():
    assert shipped() == ["letters", "numbers", "plain", "reasoning"]
    for name in shipped():
        template = read_template(name)
        assert PromptTemplate.from_mapping(template.to_json()) == template
        inputs = inputs_of(byte_tokenizer(), template=template.to_json())
        text = inputs.tokenizer.decode(read(inputs, "my question", "one", "two"))
        assert "my question" in text and text.index("one") < text.index("two")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"passage": "{identifier}"}, r"passage: \{text\} is missing"),
        (
            {"introduction": "no place", "instruction": ""},
            r"introduction and instruction: \{query\} is missing in both",
        ),
        ({"introduction": "{query} {rank}"}, r"introduction: unknown place \{rank\}; allowed: query, num"),
        ({"passage": "{identifier} {text} {text}"}, r"passage: \{text\} occurs 2 times"),
        ({"identifiers": {"scheme": "roman"}}, "identifiers.scheme must be one of auto, letters, .* got 'roman'"),
        ({"identifiers": {"opening": "("}}, "unknown key identifiers.opening; known: scheme, open, close, separator"),
        ({"identifiers": {"separator": " "}}, "identifiers.separator must hold more than white space"),
        ({"answer_pattern": r"\d+"}, "answer_pattern must have one group"),
        ({"outro": "x"}, "unknown key outro; known: name, system, introduction"),
    ],
)
def test_errors_of_templates(keys, message):
    with pytest.raises(ValueError, match=message):
        PromptTemplate.from_mapping({**TEMPLATE, **keys})


def test_errors_of_template_files_name_the_line(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\nintroduction: x {query}\npassage: '{identifier} {txt}'\ninstruction: ''\n")
    with pytest.raises(ValueError, match=r"mine.yaml:3: passage: unknown place \{txt\}"):
        read_template(str(path))
    with pytest.raises(ValueError, match="prompt=typo is neither a file nor one of letters, numbers, plain, reasoning"):
        read_template("typo")


def test_rank_llm_templates_are_read(tmp_path):
    path = tmp_path / "theirs.yaml"
    path.write_text(
        'method: "singleturn_listwise"\nsystem_message: "Rank."\nprefix: |\n  {num} passages under an alphabetical '
        "identifier: {query}.\nbody: |\n  [{rank}] {candidate}\nsuffix: |-\n  Search Query: {query}.\n  Write {psg_ids}.\n"
    )
    template = read_template(str(path))
    assert (template.scheme, template.open, template.close) == ("letters", "[", "]")
    inputs = inputs_of(byte_tokenizer(), template=template.to_json())
    text = inputs.tokenizer.decode(read(inputs, "who", "one", "two"))
    assert (
        "2 passages under an alphabetical identifier: who.\n[A] one\n[B] two\nSearch Query: who.\nWrite [B] > [A]."
        in text
    )


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"window": 1}, "window must be >= 2 passages, got 1"),
        ({"stride": 6}, "stride must be in 1 to window=5, got 6"),
        ({"top_k": 0}, "top_k must be >= 1, got 0"),
        ({"min_passage_tokens": 400}, "min_passage_tokens must be <= max_passage_tokens=300, got 400"),
        ({"decode": "beam"}, "decode must be one of first_token, generate, constrained, got 'beam'"),
        ({"reasoning_tokens": 5}, "reasoning_tokens must be 0, or > 0 with decode=generate, got 5"),
    ],
)
def test_errors_of_settings(keys, message):
    with pytest.raises(ValueError, match=message):
        replace(SETTINGS, **keys)
    assert ListwiseSettings.from_json(SETTINGS.to_json()) == SETTINGS
    with pytest.raises(ValueError, match="saved settings has no 'tint'"):
        ListwiseSettings.from_json({"tint": 1})
