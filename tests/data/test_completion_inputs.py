"""Prompt and completion as tokens: chat formats, the prompt as a prefix, eos once, truncation that keeps the end."""

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from rankpo.data.loaders.completion import CompletionDataLoader
from rankpo.data.table import open_table
from rankpo.data.text.conversations import ChatFormat, plain_text, role, shortened
from rankpo.models.causal_lm.inputs import CompletionInputs
from rankpo.models.causal_lm.settings import CausalSettings
from rankpo.models.loading import byte_tokenizer
from rankpo.types import Example

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] | trim + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TURNS = (("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"), ("user", "Sky?"))


def tokenizer(template: str | None = None) -> PreTrainedTokenizerFast:
    made = byte_tokenizer()
    if template == CHATML:
        made.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    made.chat_template = template
    return made


def test_default_format():
    """Markers as plain text; the end token behind the assistant's turns alone, of which the last is the completion's."""
    chat = ChatFormat.learn(tokenizer())
    prompt = "<|system|>\nBe brief.\n<|user|>\nHi\n<|assistant|>\nHello[SEP]\n<|user|>\nSky?\n<|assistant|>\n"
    assert chat.prompt(TURNS) == prompt
    assert chat.completion("Blue. ") == "Blue. [SEP]"


def test_a_tokenizers_own_format():
    """The newline behind the end of a turn is not learned: no model should write on. White space goes as it does there."""
    chat = ChatFormat.learn(tokenizer(CHATML))
    assert chat.prompt(TURNS[-1:]) == "<|im_start|>user\nSky?<|im_end|>\n<|im_start|>assistant\n"
    assert chat.completion(" Blue. ") == "Blue.<|im_end|>"
    whole = tokenizer(CHATML).apply_chat_template(
        [{"role": "user", "content": "Sky?"}, {"role": "assistant", "content": "Blue."}], tokenize=False
    )
    assert whole == chat.prompt(TURNS[-1:]) + chat.completion("Blue.") + "\n"


def test_a_template_without_an_end_gets_the_end_token():
    chat = ChatFormat.learn(
        tokenizer("{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}")
    )
    assert chat.completion("Blue.") == "Blue.[SEP]"


def test_templates_that_cannot_serve():
    with pytest.raises(ValueError, match="does not show the assistant's content"):
        ChatFormat.learn(tokenizer("{{ messages[0]['content'] }}"))
    mute = tokenizer()
    mute.eos_token = None
    with pytest.raises(ValueError, match="no eos token"):
        ChatFormat.learn(mute)


def test_roles_and_plain_text():
    assert [role(name) for name in ("human", "gpt", "prompter", "system")] == ["user", "assistant", "user", "system"]
    with pytest.raises(ValueError, match="role 'narrator' is not known; allowed: system, user, assistant, tool"):
        role("narrator")
    assert plain_text((("user", "Sky?"),)) == "Sky?" == plain_text("Sky?")
    assert plain_text(TURNS[1:]) == "user: Hi\nassistant: Hello\nuser: Sky?"


def test_shortening_keeps_system_and_last_user_turn():
    assert shortened(TURNS) == (TURNS[0], TURNS[3])
    assert shortened((TURNS[0], TURNS[3])) is None


class Given:
    """Examples under a name, as a dataset."""

    def __init__(self, *examples):
        self.name, self.given = "given", examples

    def fingerprint(self):
        return repr(self.given)

    def examples(self):
        return iter(self.given)


def example(query, *candidates, relevance=None, relevant=None):
    labels = relevance or (1.0,) * len(candidates)
    return Example(query=query, candidates=candidates, relevance=labels, id=str(query), relevant=relevant)


def opened(tmp_path, *examples, **settings):
    inputs = CompletionInputs(tokenizer(), CausalSettings(**settings))
    return inputs, open_table(tmp_path, [Given(*examples)], inputs.pieces(), lambda message: None)


def decoded(inputs, table):
    """(prompt, completion) of every slot, cut apart by the labels."""
    sequences = inputs.sequences(table, inputs.slot_pieces(table))
    found = []
    for ids, labels in zip(
        sequences.input_ids.split(sequences.lengths.tolist()),
        sequences.labels.split(sequences.lengths.tolist()),
        strict=True,
    ):
        scored = (labels != -100).numpy()
        assert (np.diff(scored.astype(int)) >= 0).all() and (labels[scored] == ids[scored]).all()
        found.append((inputs.tokenizer.decode(ids[~scored]), inputs.tokenizer.decode(ids[scored])))
    return found


def test_sequences_of_text_and_turns(tmp_path):
    """Equal words as a prompt, as a completion and within a conversation stay apart; an empty prompt is a beginning."""
    inputs, table = opened(
        tmp_path,
        example("Sky", " blue", "Sky"),
        example((("user", "Sky"),), "Sky"),
        example("", "Sky"),
    )
    assert decoded(inputs, table) == [
        ("[CLS]Sky", " blue[SEP]"),
        ("[CLS]Sky", "Sky[SEP]"),
        ("<|user|>\nSky\n<|assistant|>\n", "Sky[SEP]"),
        ("[CLS]", "Sky[SEP]"),
    ]


def test_truncation_keeps_the_end_of_the_prompt_and_is_counted(tmp_path):
    """An old exchange goes first; what is still too long loses its beginning; a completion loses its end, and eos."""
    long = (("user", "x" * 50), ("assistant", "y"), ("user", "Sky?"))
    inputs, table = opened(
        tmp_path,
        example(long, "Blue."),
        example((("user", "z" * 30 + "?"),), "Blue."),
        example("abcdef" * 10, "b" * 30),
        example("short", "c"),
        max_length=60,
        max_prompt_length=40,
    )
    assert decoded(inputs, table) == [
        ("<|user|>\nSky?\n<|assistant|>\n", "Blue.[SEP]"),
        (("<|user|>\n" + "z" * 30 + "?\n<|assistant|>\n")[-40:], "Blue.[SEP]"),
        ("[CLS]" + ("abcdef" * 10)[-39:], "b" * 20),
        ("[CLS]short", "c[SEP]"),
    ]
    assert table.notes == {"prompts_shortened": 2, "prompts_cut": 2}
    said = "of 4 completions: 2 prompts shortened, 2 prompts cut, 1 completions cut (model.max_length)"
    assert inputs.report(table) == said


def test_batches_count_scored_tokens_and_hold_each_pair_once(tmp_path):
    inputs, table = opened(
        tmp_path, example("a", "bcd", "e", relevance=(1.0, 0.0)), example("a", "bcd", relevance=(1.0,))
    )
    groups = [
        CompletionDataLoader(table=table, batch_size=8, seed=1, completions="all").group(0, np.array(item))
        for item in ((0, 0), (0, 1), (1, 2))
    ]
    batch = inputs.collate(table, groups, reference=np.array([1.0, 2.0, 3.0], dtype=np.float32))
    assert batch.candidates.tolist() == [[0], [1], [0]] and len(batch.sequences) == 2
    assert batch.labels.lengths.tolist() == [[4], [2], [4]] and batch.sequences.lengths.tolist() == [6, 4]
    assert batch.reference.tolist() == [[1.0], [2.0], [3.0]]
    assert inputs.costs(table, groups).tolist() == [6, 4, 6]


def test_sft_learns_from_the_best_completion(tmp_path):
    _, table = opened(
        tmp_path,
        example("a", "x", "y", "z", relevance=(0.5, 2.0, 2.0)),
        example("b", "x", relevance=(0.0,), relevant=(False,)),
        example("c", "x", relevance=(1.0,), relevant=(True,)),
    )
    best = CompletionDataLoader(table=table, batch_size=8, seed=1, shuffle=False)
    assert best.items.tolist() == [[0, 1], [2, 4]]
    with pytest.raises(ValueError, match=r"dataloader\.completions=all needs to know which candidates are relevant"):
        CompletionDataLoader(table=table, batch_size=8, seed=1, completions="all")
    with pytest.raises(ValueError, match=r"dataloader.completions must be one of best, all, got 'first'"):
        CompletionDataLoader(table=table, batch_size=8, seed=1, completions="first")


def test_control_tokens_stand_between_and_are_not_scored(tmp_path):
    inputs, table = opened(
        tmp_path, example("a", "b", "c", relevance=(1.0, 0.0)), control_tokens=("<|good|>", "<|bad|>")
    )
    assert decoded(inputs, table) == [("[CLS]a<|good|>", "b[SEP]"), ("[CLS]a<|bad|>", "c[SEP]")]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_length": 3}, "max_length must be >= 4 tokens, got 3"),
        ({"max_length": 10, "max_prompt_length": 9}, "max_prompt_length must be in 2 to max_length - 2 = 8, got 9"),
        ({"control_tokens": ("a", "a")}, "control_tokens must be two different tokens"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        CausalSettings(**settings)
