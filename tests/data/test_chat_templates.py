"""Chat templates: prompt and completion are transformers' own text of the conversation, or the record is refused."""

import json

import pytest
from transformers import PreTrainedTokenizerFast

from rankpo.data.readers.chat import ChatRecords
from rankpo.data.readers.fields import BadRecord
from rankpo.data.readers.passes import BadRecords
from rankpo.data.table import open_table
from rankpo.data.text.conversations import ChatFormat
from rankpo.data.text.rendering import template_text
from rankpo.models.causal_lm.inputs import CompletionInputs
from rankpo.models.causal_lm.settings import CausalSettings
from rankpo.models.random_weights import byte_tokenizer

HEADER = "{{ '<|im_start|>assistant\n' }}"
TURN = "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
SYSTEM = "{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"


def loop(turn, generation):
    return "{% for m in messages %}" + turn + "{% endfor %}{% if add_generation_prompt %}" + generation + "{% endif %}"


CHATML = loop(TURN, HEADER)
TRIMMED = loop(TURN.replace("m['content']", "m['content'] | trim"), HEADER)
LEFT = loop(TURN.replace("m['content']", "m['content'].lstrip()"), HEADER)
RIGHT = loop(TURN.replace("m['content']", "m['content'].rstrip()"), HEADER)
NO_PROMPT = "{% for m in messages %}" + TURN + "{% endfor %}"
# the blanks around an answer are the template's, as Llama 2 has them
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)
NAMED = loop("{{ m['role'] + ': ' + m['content'] + '\n' }}", "{{ 'assistant:' }}")
# the last answer gets an empty block of thoughts where it has none, as Qwen3 has it
EMPTY_THOUGHTS = loop(
    "{% if m['role'] == 'assistant' and loop.last and '</think>' not in m['content'] %}"
    "{{ '<|im_start|>assistant\n<think>\n\n</think>\n\n' + m['content'] + '<|im_end|>\n' }}"
    "{% else %}" + TURN + "{% endif %}",
    HEADER,
)
NO_SYSTEM = loop(SYSTEM + TURN, HEADER)
INSERTED = loop(TURN.replace("+ '<|im_end|>", "+ '\n(signed)<|im_end|>"), HEADER)
THINKING = loop(TURN, "{{ '<|im_start|>assistant\n<think>\n' }}")
# earlier answers lose their thoughts, and the generation prompt opens new ones, as DeepSeek-R1 has it
FORGETFUL = loop(
    "{% set c = m['content'].split('</think>')[-1] if m['role'] == 'assistant' else m['content'] %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + c + '<|im_end|>\n' }}",
    "{{ '<|im_start|>assistant\n<think>\n' }}",
)
EQUAL = {
    "chatml": CHATML,
    "trimmed": TRIMMED,
    "left": LEFT,
    "right": RIGHT,
    "inst": INST,
    "named": NAMED,
    "empty thoughts": EMPTY_THOUGHTS,
    "no system": NO_SYSTEM,
    "inserted": INSERTED,
    "default": None,
}
QUESTION, EARLIER = (("user", "Sky?"),), (("user", "Hi"), ("assistant", " Hello "))
CONVERSATIONS = {
    "one turn": QUESTION,
    "several turns": (*EARLIER, *QUESTION),
    "system": (("system", "Be brief."), *QUESTION),
    "blanks": (("user", "  Sky?\n"),),
}
ANSWERS = ("Blue.", " Blue.", "Blue. ", "\n\nBlue.\n", "a", "<think>\nhm\n</think>\n\nBlue.", "{{ x }} {% if %}")


def tokenizer(template: str | None = None) -> PreTrainedTokenizerFast:
    made = byte_tokenizer()
    names = {"bos_token": "<|begin|>", "eos_token": "<|end|>"}
    made.add_special_tokens({**names, "additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    made.chat_template = template
    return made


def own_text(made, chat, turns, answer):
    """By transformers alone."""
    messages = [{"role": name, "content": content} for name, content in (*turns, ("assistant", answer))]
    return made.apply_chat_template(messages, chat_template=chat.template, tokenize=False)


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("name", EQUAL)
def test_prompt_and_completion_are_the_templates_own_text(name, conversation, answer):
    made = tokenizer(EQUAL[name])
    chat, turns = ChatFormat.learn(made), CONVERSATIONS[conversation]
    if name == "no system" and conversation == "system":
        with pytest.raises(BadRecord, match="the chat template refuses this conversation: System role not supported"):
            chat.prompt(turns)
        return
    whole = own_text(made, chat, turns, answer)
    written = chat.prompt(turns) + chat.completion(turns, answer)
    behind = whole[len(written.removesuffix("<|end|>")) :] if name == "named" else whole.removeprefix(written)
    assert whole.startswith(written.removesuffix("<|end|>") if name == "named" else written)
    assert not behind.strip()
    messages = [{"role": role, "content": content} for role, content in turns]
    asked = made.apply_chat_template(messages, chat_template=chat.template, tokenize=False, add_generation_prompt=True)
    assert asked == chat.prompt(turns)  # what FINAL's template gives at inference


@pytest.mark.parametrize(
    ("name", "completion"),
    [
        ("chatml", " Blue. <|im_end|>"),
        ("trimmed", "Blue.<|im_end|>"),
        ("left", "Blue. <|im_end|>"),
        ("right", " Blue.<|im_end|>"),
        ("inst", " Blue. <|end|>"),
        ("named", "  Blue. <|end|>"),
        ("empty thoughts", "<think>\n\n</think>\n\n Blue. <|im_end|>"),
        ("inserted", " Blue. \n(signed)<|im_end|>"),
        ("default", " Blue. <|end|>"),
    ],
)
def test_completions_by_hand(name, completion):
    assert ChatFormat.learn(tokenizer(EQUAL[name])).completion(QUESTION, " Blue. ") == completion


def test_the_default_template_begins_as_the_tokenizer_begins_texts():
    chat = ChatFormat.learn(tokenizer())
    turns = (("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"), *QUESTION)
    expected = "[CLS]<|system|>\nBe brief.\n<|user|>\nHi\n<|assistant|>\nHello<|end|>\n<|user|>\nSky?\n<|assistant|>\n"
    assert chat.prompt(turns) == expected


def test_a_header_becomes_the_generation_prompt():
    """FINAL carries the template with it, so that generation begins where training began."""
    chat = ChatFormat.learn(tokenizer(NO_PROMPT))
    assert chat.prompt(QUESTION) == "<|im_start|>user\nSky?<|im_end|>\n<|im_start|>assistant\n"
    assert chat.completion(QUESTION, "Blue.") == "Blue.<|im_end|>"
    assert "has no generation prompt: '<|im_start|>assistant\\n'" in chat.notes[0]
    again = ChatFormat.learn(tokenizer(chat.template))
    assert (again.template, again.notes) == (chat.template, ())


@pytest.mark.parametrize("template", [THINKING, FORGETFUL])
def test_a_generation_prompt_that_opens_thoughts(template):
    chat = ChatFormat.learn(tokenizer(template))
    assert chat.prompt(QUESTION).endswith("<|im_start|>assistant\n<think>\n")
    for answer in ("<think>\nhm\n</think>\n\nBlue.", "hm\n</think>\n\nBlue."):
        assert chat.completion(QUESTION, answer) == "hm\n</think>\n\nBlue.<|im_end|>"
    with pytest.raises(BadRecord, match="opens <think>, and the answer neither begins with it nor closes it"):
        chat.completion(QUESTION, "Blue.")
    with pytest.raises(BadRecord, match="the prompt opens <think>, and the answer never writes </think>"):
        chat.completion(QUESTION, "<think>\nBlue.")
    assert chat.completion(QUESTION, "<think>\nBlu", finished=False) == "Blu"
    assert "opens '<think>\\n'" in chat.notes[0]


def test_a_prompt_that_ends_with_an_assistants_turn_is_continued():
    """As with continue_final_message of transformers; TRL does the same."""
    for name in ("chatml", "trimmed", "inst", "default"):
        made = tokenizer(EQUAL[name])
        chat, turns = ChatFormat.learn(made), (*QUESTION, ("assistant", "The sky"))
        messages = [{"role": role, "content": content} for role, content in turns]
        begun = made.apply_chat_template(
            messages, chat_template=chat.template, tokenize=False, continue_final_message=True
        )
        assert chat.prompt(turns) == begun
        whole = own_text(made, chat, QUESTION, "The sky is blue.")
        written = begun + chat.completion(turns, " is blue.")
        assert whole.startswith(written) and written.endswith(
            (" is blue.<|im_end|>", " is blue.<|end|>", "blue. <|end|>")
        )
        assert chat.content(turns, " is blue.") == " is blue."


def test_written_answers_are_read_back():
    """What a model writes behind the prompt becomes the content that gives the same completion."""
    for template in (*EQUAL.values(), THINKING):
        chat = ChatFormat.learn(tokenizer(template))
        for answer in ("Blue.", "<think>\nhm\n</think>\n\nBlue."):
            if template == THINKING and answer == "Blue.":
                continue
            written = chat.completion(QUESTION, answer)
            assert chat.content(QUESTION, written.removesuffix(chat.ending)) == answer


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ messages[0]['content'] }}", "does not show the assistant's content"),
        (CHATML + "{{ messages[-1]['content'] }}", "repeats the assistant's content"),
        (
            loop("{{ m['role'] + ':' + m['content'] + '\n' }}", "{{ 'assistant: ' }}"),
            "the one does not begin the other",
        ),
        (loop(TURN, "{{ '<|im_start|>model\n' }}"), "the one does not begin the other"),
        ("{% for m in messages %}{{ m['content'] ", "the chat template refuses this conversation"),
        ("{{ raise_exception('only for tools') }}", "refuses this conversation: only for tools"),
    ],
)
def test_templates_that_cannot_serve(template, message):
    with pytest.raises(ValueError, match=message):
        ChatFormat.learn(tokenizer(template))


def test_tokenizers_that_cannot_serve():
    mute = tokenizer()
    mute.eos_token = None
    with pytest.raises(ValueError, match="no eos token"):
        ChatFormat.learn(mute)
    several = tokenizer()
    several.chat_template = {"tool_use": CHATML, "rag": CHATML}
    with pytest.raises(ValueError, match=r"several chat templates \(tool_use, rag\)"):
        ChatFormat.learn(several)
    several.chat_template = {"tool_use": "{{ 'x' }}", "default": CHATML}
    assert ChatFormat.learn(several).template == CHATML


def test_an_answer_that_the_template_changes_is_refused():
    """Only white space may differ: what is lost would not be trained."""
    losing = ChatFormat.learn(tokenizer(CHATML.replace("m['content']", "m['content'].split('###')[0]")))
    assert losing.completion(QUESTION, "Blue.") == "Blue.<|im_end|>"
    with pytest.raises(BadRecord, match="does not show the whole answer"):
        losing.completion(QUESTION, "Blue.###Green.")
    # the system's words stand before the last turn, and only where that is the user's, as in Mistral's template
    moving = loop(
        "{% if m['role'] == 'system' %}{% elif m['role'] == 'user' %}"
        "{{ '[INST]' + (messages[0]['content'] + '\n' if loop.last and messages[0]['role'] == 'system' else '') }}"
        "{{ m['content'] + '[/INST]' }}{% else %}{{ m['content'] + eos_token }}{% endif %}",
        "",
    )
    chat = ChatFormat.learn(tokenizer(moving))
    assert any(note.startswith("conversations with a system turn do not fit") for note in chat.notes)
    assert chat.completion(QUESTION, "Blue.") == "Blue.<|end|>"
    with pytest.raises(BadRecord, match="does not begin with its text of the prompt"):
        chat.completion((("system", "Be brief."), *QUESTION), "Blue.")


def test_an_end_that_is_a_token_but_not_a_special_one():
    made = byte_tokenizer()
    made.add_tokens(["<|im_end|>"])
    made.chat_template = CHATML
    assert ChatFormat.learn(made).completion(QUESTION, "Blue.") == "Blue.<|im_end|>"


def test_a_template_may_be_a_file(tmp_path):
    (tmp_path / "t.jinja").write_text(CHATML)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": CHATML}))
    (tmp_path / "other.json").write_text("{}")
    assert template_text(None) is None
    assert template_text(CHATML) == template_text(str(tmp_path / "t.jinja")) == CHATML
    assert template_text(str(tmp_path / "tokenizer_config.json")) == CHATML
    with pytest.raises(ValueError, match="has no text under the key chat_template"):
        template_text(str(tmp_path / "other.json"))
    with pytest.raises(ValueError, match=r"chat_template=chatml is neither a template, .*, nor a file"):
        template_text("chatml")


def test_refused_conversations_have_file_and_line(tmp_path):
    system, user = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Sky?"}
    answers = {"chosen": "Blue.", "rejected": "Green."}
    path = tmp_path / "c.jsonl"
    lines = [{"prompt": [user], **answers}, {"prompt": [system, user], **answers}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    inputs = CompletionInputs(tokenizer(NO_SYSTEM), CausalSettings())
    with pytest.raises(BadRecords) as error:
        open_table(tmp_path, [ChatRecords(name="x", path=str(path))], inputs.pieces(), print)
    refused = "datasets.x: c.jsonl:2: the chat template refuses this conversation: System role not supported"
    assert str(error.value) == refused
    skipping = ChatRecords(name="x", path=str(path), on_bad_record="skip")
    table = open_table(tmp_path, [skipping], inputs.pieces(), print)
    assert len(table) == 1 and table.meta["reports"]["x"]["places"] == [refused]
