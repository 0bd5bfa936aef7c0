"""The habits of published chat templates, written anew in a few lines each: what is trained, and what is refused.

Facts are from the models' own template files (Hugging Face, August 2024 to November 2025); each form below keeps what
matters for training: headers, ends, thoughts, system turns, and what the last answer has that earlier ones do not.
"""

import numpy as np
import pytest

from rankpo.data.readers.fields import BadRecord
from rankpo.data.text.conversations import ChatFormat
from rankpo.models.causal_lm.inputs import CompletionInputs
from rankpo.models.causal_lm.sampling import Draw, Reader
from rankpo.models.causal_lm.settings import CausalSettings
from rankpo.models.random_weights import byte_tokenizer

THOUGHT, ANSWER = "hm", "Blue."
OWN = f"<think>\n{THOUGHT}\n</think>\n\n{ANSWER}"
ASK = (("user", "Sky?"),)
SYSTEM = (("system", "Be brief."), *ASK)
SEVERAL = (("user", "Hi"), ("assistant", "Hello"), *ASK)


def loop(body, generation=""):
    asked = "{%- if add_generation_prompt -%}" + generation + "{%- endif -%}" if generation else ""
    return "{%- for m in messages -%}" + body + "{%- endfor -%}" + asked


# an answer's thoughts are set out anew, and dropped before the last question
REASONED = (
    "{%- set c = m.content -%}{%- set r = '' -%}{%- if '</think>' in c -%}"
    "{%- set r = c.split('</think>')[0].split('<think>')[-1].strip('\n') -%}"
    "{%- set c = c.split('</think>')[-1].lstrip('\n') -%}{%- endif -%}"
)
QWEN3 = loop(
    "{%- if m.role == 'assistant' -%}" + REASONED + "{{- '<|im_start|>assistant\n' -}}"
    "{%- if loop.last -%}{{- '<think>\n' + r + '\n</think>\n\n' -}}{%- endif -%}{{- c + '<|im_end|>\n' -}}"
    "{%- else -%}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' -}}{%- endif -%}",
    "{{- '<|im_start|>assistant\n' -}}",
)
QWEN3_THINKING = QWEN3.replace(
    "{{- '<|im_start|>assistant\n' -}}{%- endif -%}", "{{- '<|im_start|>assistant\n<think>\n' -}}{%- endif -%}"
)
LLAMA3 = "{{- bos_token -}}" + loop(
    "{{- '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' -}}",
    "{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' -}}",
)
# the system's words stand in the first user's turn, and turns must alternate
GEMMA3 = (
    "{{- bos_token -}}{%- if messages[0].role == 'system' -%}{%- set first = messages[0].content + '\n\n' -%}"
    "{%- set rest = messages[1:] -%}{%- else -%}{%- set first = '' -%}{%- set rest = messages -%}{%- endif -%}"
    "{%- for m in rest -%}{%- if (m.role == 'user') != (loop.index0 % 2 == 0) -%}"
    "{{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') -}}{%- endif -%}"
    "{{- '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + (first if loop.first else '') -}}"
    "{{- m.content | trim + '<end_of_turn>\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<start_of_turn>model\n' -}}{%- endif -%}"
)
# an end token in place of a generation prompt
PHI4_MINI = loop("{{- '<|' + m.role + '|>' + m.content + '<|end|>' -}}", "{{- '<|assistant|>' -}}").replace(
    "{{- '<|assistant|>' -}}{%- endif -%}", "{{- '<|assistant|>' -}}{%- else -%}{{- eos_token -}}{%- endif -%}"
)
# marks around the answer, of which a model has to write both ends
COMMAND_R7B = "{{- bos_token -}}" + loop(
    "{%- if m.role == 'assistant' -%}{{- '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_RESPONSE|>' + m.content -}}"
    "{{- '<|END_RESPONSE|><|END_OF_TURN_TOKEN|>' -}}{%- else -%}"
    "{{- '<|START_OF_TURN_TOKEN|><|USER_TOKEN|>' + m.content + '<|END_OF_TURN_TOKEN|>' -}}{%- endif -%}",
    "{{- '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' -}}",
)
# a channel, and another end behind the last answer than behind earlier ones
GPT_OSS = loop(
    "{%- if m.role == 'assistant' -%}{{- '<|start|>assistant<|channel|>final<|message|>' + m.content -}}"
    "{{- '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' -}}"
    "{%- else -%}{{- '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' -}}{%- endif -%}",
    "{{- '<|start|>assistant' -}}",
)
# nothing ends an answer but the next turn
GLM4 = "{{- '[gMASK]<sop>' -}}" + loop(
    "{%- if m.role == 'assistant' -%}"
    + REASONED
    + "{{- '<|assistant|>\n<think>' + r.strip() + '</think>\n' + c.strip() -}}"
    "{%- else -%}{{- '<|' + m.role + '|>\n' + m.content -}}{%- endif -%}",
    "{{- '<|assistant|>' -}}",
)
# thoughts are opened in the prompt and before the last answer alike, whatever it has
NEMOTRON = loop(
    "{%- if m.role == 'assistant' -%}{{- 'Assistant\n' + ('<think>\n\n' if loop.last else '') -}}"
    "{{- (m.content if loop.last else m.content.split('</think>')[-1]).strip() + '\n<SPECIAL_12>\n\n' -}}"
    "{%- else -%}{{- 'User\n' + m.content.strip() + '\n' -}}{%- endif -%}",
    "{{- 'Assistant\n<think>\n\n' -}}",
)
# an empty block before every answer, also before one that has its own
KIMI_K2_THINKING = loop(
    "{{- '<|im_' + m.role + '|>' + m.role + '<|im_middle|>' -}}"
    "{{- ('<think></think>' if m.role == 'assistant' else '') + m.content + '<|im_end|>' -}}",
    "{{- '<|im_assistant|>assistant<|im_middle|>' -}}",
)
# the system's words are gathered in front, and what stood before </think> is dropped
DEEPSEEK_V3_1 = (
    "{%- set ns = namespace(system='') -%}"
    + loop("{%- if m.role == 'system' -%}{%- set ns.system = ns.system + m.content -%}{%- endif -%}")
    + "{{- bos_token + ns.system -}}"
    + loop(
        "{%- if m.role == 'user' -%}{{- '<｜User｜>' + m.content -}}{%- elif m.role == 'assistant' -%}"
        "{{- '<｜Assistant｜></think>' + m.content.split('</think>')[-1] + eos_token -}}{%- endif -%}",
        "{{- '<｜Assistant｜></think>' -}}",
    )
)
# the same with thoughts opened in the generation prompt alone
DEEPSEEK_R1 = DEEPSEEK_V3_1.replace("<｜Assistant｜></think>' +", "<｜Assistant｜>' +").replace(
    "<｜Assistant｜></think>'", "<｜Assistant｜><think>\n'"
)
MISTRAL_SMALL = "{{- bos_token -}}" + loop(
    "{%- if m.role == 'system' -%}{{- '[SYSTEM_PROMPT]' + m.content + '[/SYSTEM_PROMPT]' -}}"
    "{%- elif m.role == 'user' -%}{{- '[INST]' + m.content + '[/INST]' -}}{%- else -%}{{- m.content + eos_token -}}"
    "{%- endif -%}"
)
# answers stand in a block by which transformers finds what is trained
SMOLLM3 = loop(
    "{%- if m.role == 'assistant' -%}{%- generation -%}{{- '<|im_start|>assistant\n' + m.content.lstrip('\n') -}}"
    "{{- '<|im_end|>\n' -}}{%- endgeneration -%}{%- else -%}"
    "{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' -}}{%- endif -%}",
    "{{- '<|im_start|>assistant\n' -}}",
)
GRANITE = loop(
    "{{- '<|start_of_role|>' + m.role + '<|end_of_role|>' + m.content + '<|end_of_text|>\n' -}}"
    "{%- if loop.last and add_generation_prompt -%}{{- '<|start_of_role|>assistant<|end_of_role|>' -}}{%- endif -%}"
)
# thoughts are opened in the generation prompt, and an answer without them gets an empty block
NEMOTRON3 = loop(
    "{%- if m.role == 'assistant' -%}{{- '<|im_start|>assistant\n' + ('' if '<think>' in m.content else '<think></think>') -}}"
    "{{- m.content + '<|im_end|>\n' -}}{%- else -%}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' -}}"
    "{%- endif -%}",
    "{{- '<|im_start|>assistant\n<think>\n' -}}",
)
SPECIAL = (
    *("<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<start_of_turn>"),
    *("<end_of_turn>", "<|end|>", "<|START_OF_TURN_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|USER_TOKEN|>", "<|return|>"),
    *("<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|END_OF_TURN_TOKEN|>", "<|start|>", "<|channel|>", "<|message|>"),
    *("<|user|>", "<|assistant|>", "<SPECIAL_12>", "<|end_of_role|>", "<|start_of_role|>", "<|end_of_text|>"),
)
# template: what is trained for a plain answer, and for one with its own thoughts; None where that is refused
FAMILIES = {
    "Qwen3": (QWEN3, "<think>\n\n</think>\n\nBlue.<|im_end|>", OWN + "<|im_end|>"),
    "Qwen3 thinking": (QWEN3_THINKING, "\n</think>\n\nBlue.<|im_end|>", "hm\n</think>\n\nBlue.<|im_end|>"),
    "Llama 3": (LLAMA3, "Blue.<|eot_id|>", OWN + "<|eot_id|>"),
    "Gemma 3": (GEMMA3, "Blue.<end_of_turn>", OWN + "<end_of_turn>"),
    "Phi-4-mini": (PHI4_MINI, "Blue.<|end|>", OWN + "<|end|>"),
    "Command R7B": (
        COMMAND_R7B,
        "<|START_RESPONSE|>Blue.<|END_RESPONSE|><|END_OF_TURN_TOKEN|>",
        f"<|START_RESPONSE|>{OWN}<|END_RESPONSE|><|END_OF_TURN_TOKEN|>",
    ),
    "gpt-oss": (
        GPT_OSS,
        "<|channel|>final<|message|>Blue.<|return|>",
        f"<|channel|>final<|message|>{OWN}<|return|>",
    ),
    "GLM 4.6": (GLM4, "\n<think></think>\nBlue.[SEP]", "\n<think>hm</think>\nBlue.[SEP]"),
    "Nemotron Nano 2": (NEMOTRON, None, "hm\n</think>\n\nBlue.\n<SPECIAL_12>"),
    "Nemotron 3": (NEMOTRON3, None, "hm\n</think>\n\nBlue.<|im_end|>"),
    "Kimi K2 Thinking": (KIMI_K2_THINKING, "<think></think>Blue.<|im_end|>", None),
    "DeepSeek V3.1": (DEEPSEEK_V3_1, "Blue.[SEP]", None),
    "DeepSeek R1": (DEEPSEEK_R1, None, "hm\n</think>\n\nBlue.[SEP]"),
    "Mistral Small 3.1": (MISTRAL_SMALL, "Blue.[SEP]", OWN + "[SEP]"),
    "SmolLM3": (SMOLLM3, "Blue.<|im_end|>", OWN + "<|im_end|>"),
    "Granite 3.3": (GRANITE, "Blue.<|end_of_text|>", OWN + "<|end_of_text|>"),
}
REFUSED = (
    "never writes </think>|neither begins with it nor closes it|does not show the whole|puts '<think></think>' before"
)


def tokenizer(template):
    made = byte_tokenizer()
    made.add_special_tokens({"additional_special_tokens": list(SPECIAL)})
    made.chat_template = template
    return made


@pytest.mark.parametrize("turns", [ASK, SYSTEM, SEVERAL], ids=["one turn", "system", "several turns"])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_trained(family, turns):
    """Each completion as written by hand, and prompt + completion as transformers renders the conversation."""
    template, *expected = FAMILIES[family]
    made = tokenizer(template)
    chat = ChatFormat.learn(made)
    messages = [{"role": role, "content": content} for role, content in turns]
    asked = made.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert chat.prompt(turns) == asked
    for answer, completion in zip((ANSWER, OWN), expected, strict=True):
        if completion is None:
            with pytest.raises(BadRecord, match=REFUSED):
                chat.completion(turns, answer)
            continue
        assert chat.completion(turns, answer) == completion
        own = made.apply_chat_template([*messages, {"role": "assistant", "content": answer}], tokenize=False)
        # two stand apart from their own text: the one forgets thoughts, the other opens them twice
        if family not in ("DeepSeek R1", "Nemotron Nano 2"):
            assert own.startswith(asked + completion.removesuffix("[SEP]"))


@pytest.mark.parametrize("family", FAMILIES)
def test_written_answers_are_read_back(family):
    """Tokens of a completion, as a model would write them, become the content that gives the same completion again."""
    template, *expected = FAMILIES[family]
    inputs = CompletionInputs(tokenizer(template), CausalSettings())
    reader, chat = Reader(inputs), inputs.chat
    (ids,) = reader.ids([ASK])
    for completion in filter(None, expected):
        written = inputs.continuation.ids([completion])[0]
        assert written[-1] in reader.stops and not set(written[:-1]) & set(reader.stops)
        found = reader.completion(Draw("p", 0, ASK, np.array(ids)), written)
        assert found.finished and chat.completion(ASK, found.text) == completion


def test_rewards_and_controls_fit_every_family():
    """What FINAL's template adds to these renders as it should, blocks of `generation` included."""
    from rankpo.data.text.rendering import ended_at, with_generation_prompt

    for family, (template, *expected) in FAMILIES.items():
        made = tokenizer(template)
        chat = ChatFormat.learn(made)
        ended = ended_at(with_generation_prompt(chat.template, "<|good|>"), chat.tail, chat.ending)
        answer = ANSWER if expected[0] is not None else OWN
        messages = [{"role": "user", "content": "Sky?"}]
        asked = made.apply_chat_template(messages, chat_template=ended, tokenize=False, add_generation_prompt=True)
        assert asked == chat.prompt(ASK) + "<|good|>", family
        whole = [*messages, {"role": "assistant", "content": answer}]
        assert made.apply_chat_template(whole, chat_template=ended, tokenize=False).endswith(chat.ending), family


def test_roles_that_must_alternate_are_refused_by_the_templates_own_words():
    chat = ChatFormat.learn(tokenizer(GEMMA3))
    with pytest.raises(BadRecord, match="refuses this conversation: Conversation roles must alternate"):
        chat.prompt((("user", "Hi"), *ASK))
    assert chat.prompt(SYSTEM) == "[CLS]<start_of_turn>user\nBe brief.\n\nSky?<end_of_turn>\n<start_of_turn>model\n"


def test_an_answer_behind_a_turn_that_opens_nothing():
    """DeepSeek opens thoughts behind a user's turn alone: what is written behind a tool's turn has none."""
    tool = "{%- elif m.role == 'tool' -%}{{- '<|tool|>' + m.content -}}{%- endif -%}{%- endfor -%}"
    template = DEEPSEEK_R1.replace("{%- endif -%}{%- endfor -%}{%- if add", tool + "{%- if add")
    template = template.replace(
        "{%- if add_generation_prompt", "{%- if add_generation_prompt and messages[-1].role == 'user'"
    )
    chat = ChatFormat.learn(tokenizer(template))
    behind_tool = (*ASK, ("assistant", "call"), ("tool", "42"))
    assert chat.prompt(ASK).endswith("<think>\n") and chat.prompt(behind_tool).endswith("<|tool|>42")
    assert chat.content(ASK, "hm\n</think>\n\nBlue.") == "<think>\nhm\n</think>\n\nBlue."
    assert chat.content(behind_tool, "Blue.") == "Blue."
