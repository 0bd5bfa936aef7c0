"""Prompt and completion as tokens: chat formats, the prompt as a prefix, eos once, truncation that keeps the end."""

import numpy as np
import pytest
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from rankpo.data.loaders.completion import CompletionDataLoader
from rankpo.data.table import open_table
from rankpo.data.text.conversations import plain_text, role, shortened
from rankpo.models.causal_lm.inputs import CompletionInputs
from rankpo.models.causal_lm.settings import CausalSettings
from rankpo.models.random_weights import byte_tokenizer
from rankpo.types import Example
from tests.tokenizers import sentencepiece

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
        ("[CLS]<|user|>\nSky\n<|assistant|>\n", "Sky[SEP]"),
        ("[CLS]", "Sky[SEP]"),
    ]


def test_truncation_keeps_the_frame_of_the_turns_and_is_counted(tmp_path):
    """An old exchange goes first; a turn that is still too long loses its beginning; a completion loses its end, and eos."""
    long = (("user", "x" * 50), ("assistant", "y"), ("user", "Sky?"))
    inputs, table = opened(
        tmp_path,
        example(long, "Blue."),
        example((("user", "abcdef" * 5 + "?"),), "Blue."),
        example("abcdef" * 10, "b" * 30),
        example("short", "c"),
        max_length=60,
        max_prompt_length=40,
    )
    frame = len("<|user|>\n\n<|assistant|>\n") + 1  # and the first token
    assert decoded(inputs, table) == [
        ("[CLS]<|user|>\nSky?\n<|assistant|>\n", "Blue.[SEP]"),
        ("[CLS]<|user|>\n" + ("abcdef" * 5 + "?")[-(40 - frame) :] + "\n<|assistant|>\n", "Blue.[SEP]"),
        ("[CLS]" + ("abcdef" * 10)[-39:], "b" * 20),
        ("[CLS]short", "c[SEP]"),
    ]
    assert table.notes == {"prompts_shortened": 2, "prompts_cut": 2}
    said = "of 4 completions: 2 prompts shortened, 2 prompts cut, 1 completions cut (model.max_length)"
    assert inputs.report(table) == said


def test_a_system_turn_keeps_its_beginning(tmp_path):
    turns = (("system", "abcdefgh" * 10), ("user", "Sky?"))
    inputs, table = opened(tmp_path, example(turns, "Blue."), max_length=80, max_prompt_length=60)
    ((prompt, _),) = decoded(inputs, table)
    frame = len("<|system|>\n\n<|user|>\nSky?\n<|assistant|>\n") + 1
    assert prompt == "[CLS]<|system|>\n" + ("abcdefgh" * 10)[: 60 - frame] + "\n<|user|>\nSky?\n<|assistant|>\n"
    inputs = CompletionInputs(tokenizer(), CausalSettings(max_length=40, max_prompt_length=10))
    with pytest.raises(ValueError, match="max_prompt_length=10 is less than the 25 tokens that the chat template puts"):
        inputs.tokenize([inputs.render(example((("user", "Sky?"),)))[0]])


def with_ends(template=None):
    """A tokenizer whose turns end otherwise than its texts, and which puts a first token in front."""
    made = byte_tokenizer()
    names = {"bos_token": "<|begin|>", "eos_token": "<|end|>"}
    made.add_special_tokens({**names, "additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    core = made.backend_tokenizer
    first = made.convert_tokens_to_ids("<|begin|>")
    core.post_processor = TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", first)])
    made.chat_template = template
    return made


RENDERED = "<|begin|><|im_start|>user\nSky?<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("prompt", "completion", "expected"),
    [
        (RENDERED, "Blue.<|im_end|>\n", (RENDERED, "Blue.<|im_end|>")),
        (RENDERED, "Blue.<|end|>", (RENDERED, "Blue.<|end|>")),
        (RENDERED, "Blue.", (RENDERED, "Blue.<|end|>")),
        ("Sky", " blue", ("<|begin|>Sky", " blue<|end|>")),
        ("", RENDERED + "Blue.<|im_end|>\n", ("<|begin|>", RENDERED[9:] + "Blue.<|im_end|>")),
        ("<|begin|>", "Blue", ("<|begin|>", "Blue<|end|>")),
    ],
)
def test_first_and_last_tokens_stand_once(tmp_path, prompt, completion, expected):
    inputs = CompletionInputs(with_ends(CHATML), CausalSettings())
    table = open_table(tmp_path, [Given(example(prompt, completion))], inputs.pieces(), lambda message: None)
    assert decoded(inputs, table) == [expected]


def test_a_first_token_that_only_the_text_has_survives_the_cut(tmp_path):
    inputs = CompletionInputs(byte_tokenizer(), CausalSettings(max_length=40, max_prompt_length=20))
    inputs.tokenizer.backend_tokenizer.post_processor = None
    inputs = CompletionInputs(inputs.tokenizer, inputs.settings)
    assert inputs.head == ()
    given = example("[CLS]" + "abcd" * 10, "x")
    table = open_table(tmp_path, [Given(given)], inputs.pieces(), lambda message: None)
    assert decoded(inputs, table) == [("[CLS]" + ("abcd" * 10)[-19:], "x[SEP]")]


def test_a_completion_that_was_cut_has_no_end(tmp_path):
    from dataclasses import replace

    plain = replace(example("Sky", " blue", " gre"), finished=(True, False))
    chat = replace(example((("user", "Sky?"),), "Blu"), finished=(False,))
    inputs, table = opened(tmp_path, plain, chat)
    assert [completion for _, completion in decoded(inputs, table)] == [" blue[SEP]", " gre", "Blu"]


def llama_2() -> PreTrainedTokenizerFast:
    """A blank in front of every text by the normaliser, bytes for what is unknown: as Llama 2 and Mistral have it."""
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers

    core = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{number:02X}>" for number in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special[:3], show_progress=False)
    texts = ["A: because the sky is blue", "x = f(the) 19", "[INST] Sky? [/INST] because"] * 4
    core.train_from_iterator(texts, trainer)
    core.add_tokens(special[3:])
    core.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.mark.parametrize("make", [llama_2, sentencepiece, byte_tokenizer])
@pytest.mark.parametrize(
    ("prompt", "completion"), [("A:", "because"), ("A:", " because"), ("x = f(", "the)"), ("A: ", "the yes")]
)
def test_tokens_decode_to_the_text(make, prompt, completion):
    """No blank is invented where a tokenizer puts one in front of every text."""
    made = make()
    inputs = CompletionInputs(made, CausalSettings())
    text, (answer,) = inputs.render(example(prompt, completion))
    given, scored = inputs.tokenize([text, answer])
    head, rest = len(inputs.head), made(prompt, add_special_tokens=False)["input_ids"]
    assert given[head:] == rest
    known = made.decode(rest)  # letters that the tokenizer does not know are lost, whatever stands behind them
    assert made.decode(rest + scored[:-1]) == known + completion


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
