"""Chat templates rendered by transformers: texts of conversations, what ends a turn, and the default template."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rankpo.data.readers.fields import BadRecord
from rankpo.data.text.special_tokens import SpecialTokens
from rankpo.types import Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# for tokenizers without a template; eos ends the assistant's turns alone, as it will end what the model writes
DEFAULT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\\n' + message['content'] }}"
    "{{ eos_token if message['role'] == 'assistant' else '' }}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
# how the families open the thoughts that stand before an answer
THOUGHT = re.compile(r"(?:<(?:\w+:)?(?:think|thinking|thoughts?|reasoning)>|\[THINK\]|<\|START_THINKING\|>)\s*\Z", re.I)
SENTINEL = "\ue000completion\ue001"  # private-use letters: no template and no text holds them


def chosen_template(tokenizer: PreTrainedTokenizerBase, template: str | None) -> str:
    """The given template, else the tokenizer's (of several the one called default), else the default of this module.

    Raises ValueError where the tokenizer has several templates and none is called default.
    """
    chosen = template or tokenizer.chat_template
    if isinstance(chosen, dict):
        if "default" not in chosen:
            raise ValueError(f"the tokenizer has several chat templates ({', '.join(chosen)}); set model.chat_template")
        chosen = chosen["default"]
    if chosen:
        return str(chosen)
    # the beginning that the tokenizer puts in front of plain texts stands in front of conversations too
    head = tokenizer.convert_ids_to_tokens(list(SpecialTokens.learn(tokenizer).head))
    return f"{{{{ {json.dumps(''.join(head), ensure_ascii=False)} }}}}{DEFAULT_TEMPLATE}" if head else DEFAULT_TEMPLATE


def template_text(given: str | None) -> str | None:
    """The template of `model.chat_template`: jinja, or a file of it, or a tokenizer_config.json. None stays None.

    Raises ValueError for what is neither.
    """
    if given is None or "{{" in given or "{%" in given:
        return given
    path = Path(given).expanduser()
    if not path.is_file():
        raise ValueError(f"chat_template={given} is neither a template, which has {{{{ or {{% in it, nor a file")
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".json":
        return text
    template = json.loads(text).get("chat_template")
    if not isinstance(template, str):
        raise ValueError(f"chat_template={given} has no text under the key chat_template")
    return template


def render(tokenizer: PreTrainedTokenizerBase, template: str, turns: Sequence[Turn], *, generation: bool) -> str:
    """The template's text of a conversation. generation: with the header of the assistant's next turn.

    Raises BadRecord with the template's own words where it refuses the conversation.
    """
    from jinja2.exceptions import TemplateError

    messages = [{"role": name, "content": content} for name, content in turns]
    try:
        text = tokenizer.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=generation
        )
    except (TemplateError, TypeError, ValueError, IndexError) as error:
        words = " ".join(str(error).split()) or type(error).__name__
        raise BadRecord(f"the chat template refuses this conversation: {words}") from error
    assert isinstance(text, str)
    return text


def with_generation_prompt(template: str, header: str) -> str:
    """The template with a header for the assistant's next turn, where it is asked for one."""
    return f"{template}{{% if add_generation_prompt %}}{{{{ {json.dumps(header, ensure_ascii=False)} }}}}{{% endif %}}"


def ended_at(template: str, tail: str, ending: str) -> str:
    """The template, whose text of a conversation that ends with an answer ends in `ending` in place of `tail`."""
    cut = f"whole[:whole | length - {len(tail)}] + {json.dumps(ending, ensure_ascii=False)}"
    asked = "messages and messages[-1]['role'] == 'assistant' and not add_generation_prompt"
    fits = f"whole.endswith({json.dumps(tail, ensure_ascii=False)})"
    return f"{{% set whole %}}{template}{{% endset %}}{{{{ {cut} if {asked} and {fits} else whole }}}}"


def special_texts(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """Texts that the tokenizer reads as one token of its own, whether it is marked as special or not."""
    added = {str(token) for token in tokenizer.added_tokens_decoder.values()}
    return {text for text in added | set(tokenizer.all_special_tokens) if text and text.strip()}


def cut_ending(tail: str, later: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """The part of `tail`, which follows the last answer, that a model has to write: up to its first special token, and
    those that stand right behind it where an earlier answer is followed by them too.

    later: what follows an earlier answer. Without a special token the part ends in the tokenizer's end token, which then
    stands in for white space at the end of the tail.
    """
    special = sorted(special_texts(tokenizer), key=len, reverse=True)
    ends = [tail.find(text) + len(text) for text in special if text in tail]
    if not ends:
        return tail.rstrip() + str(tokenizer.eos_token)
    end = min(ends)
    while following := next((text for text in special if tail.startswith(text, end)), None):
        if not later.startswith(tail[: end + len(following)]):
            break
        end += len(following)
    return tail[:end]


def opened_thought(prompt: str) -> str:
    """The tag, with white space, that a prompt ends with where it begins the answer's thoughts; else an empty text."""
    found = THOUGHT.search(prompt)
    return "" if found is None else found.group(0)


def closing_tag(opened: str) -> str | None:
    """</think> for a text that opens <think>, [/THINK] for [THINK]; None for what is no tag."""
    if opened.strip().startswith("<|START_"):
        return opened.strip().replace("<|START_", "<|END_")
    found = re.match(r"\s*([<\[])([\w:]+)([>\]])", opened)
    return None if found is None else f"{found.group(1)}/{found.group(2)}{found.group(3)}"


def letters(text: str) -> str:
    """The text without white space, for comparing texts that a template has set out anew."""
    return "".join(text.split())
