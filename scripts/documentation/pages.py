"""Pages of the reference, as Markdown: one for each group of the config, and one for the losses."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

import yaml
from groups import ROOT, Key, Option, groups, located, meaning, options, read

from rankpo.config.construct import build
from rankpo.config.temperatures import resolved
from rankpo.losses.base import Loss
from rankpo.losses.temperature import COSINES

GROUPS = {  # the order of the reference, with a title and what the group chooses
    "task": ("Tasks", "What a command does."),
    "model": ("Models", "Which weights: a checkpoint of the hub or a folder."),
    "kind": ("Kinds", "What is made of the weights: how texts are read, and how a candidate gets its score."),
    "loss": ("Losses", "What is learned from scores."),
    "datasets": (
        "Datasets",
        "Sources of records. `eval_datasets` and `replay_datasets` take the same options and keys.",
    ),
    "dataloader": ("Data loaders", "How examples become groups of candidates; the loss chooses one."),
    "trainer": ("Trainers", "The training loop; the loss chooses one. All of them have the same keys."),
    "optimizer": ("Optimizers", "The optimiser and its learning rate."),
    "scheduler": ("Schedulers", "The learning rate over the run."),
    "mining": ("Mining", "How `task=mine` chooses hard negatives."),
    "judge": ("Judges", "Who compares passages for `task=annotate`."),
    "tracker": ("Trackers", "Where metrics are sent beside the console and metrics.jsonl."),
    "search": ("Hyperparameter search", "How a sweep (`-m`) chooses its values."),
    "experiment": ("Experiments", "Complete published or documented runs."),
    "debug": ("Debugging", "Short runs that show whether a config works."),
}


def reference() -> dict[str, str]:
    """All pages of the reference: Markdown by path in docs/."""
    if missing := set(groups()) - {*GROUPS}:
        raise ValueError(f"scripts/documentation/pages.py: GROUPS has no title for {', '.join(sorted(missing))}")
    pages = {f"reference/{name}.md": page(name) for name in GROUPS if name != "loss"}
    return {"reference/index.md": overview(), "reference/loss.md": losses(), **pages}


def overview() -> str:
    """The page of the run's own keys, with a table of the groups."""
    rows = [f"| [`{name}`]({name}.md) | {words} | {_names(name)} |" for name, (_, words) in GROUPS.items()]
    return "\n".join(
        [
            "# Reference",
            "",
            "A run is composed from one option of each group, and keys. `loss=dpo` chooses an option; `loss.beta=0.2` sets a key.",
            "These pages are generated from the yamls in `config/` and from the classes that they name.",
            "",
            "| group | chooses | options |",
            "|---|---|---|",
            *rows,
            "",
            "## Keys of a run",
            "",
            *table(read(ROOT / "config" / "config.yaml").keys, ""),
        ]
    )


def _names(group: str) -> str:
    return " ".join(f"[`{option.name}`]({group}.md#{option.name})" for option in options(group))


def page(group: str) -> str:
    """The page of a group: each option with its summary, what it chooses, and its keys."""
    title, words = GROUPS[group]
    lines = [f"# {title}", "", words, ""]
    for option in options(group):
        lines += [*section(option), ""]
    return "\n".join(lines)


def section(option: Option) -> Iterator[str]:
    """One option of a group."""
    group = option.group.replace("/", ".")
    yield f"## {group}={option.name} {{#{group.replace('.', '-') + '-' if '/' in option.group else ''}{option.name}}}"
    yield ""
    yield prose(option.summary)
    yield ""
    yield from chosen(option)
    if option.target and option.target.startswith("rankpo.") and (words := inspect.getdoc(located(option.target))):
        yield from ["```text", words, "```", ""]
    if option.keys:
        yield from table(option.keys, option.group)


def chosen(option: Option) -> Iterator[str]:
    """Lines on the options that a yaml builds on or chooses."""
    if option.base:
        links = ", ".join(f"[`{option.group}={name}`](#{name})" for name in option.base)
        yield f"Has all keys of {links}; the keys below differ."
        yield ""
    if option.chooses:
        yield f"Chooses {', '.join(f'`{item}`' for item in option.chooses)}."
        yield ""


def table(keys: Sequence[Key], group: str) -> Iterator[str]:
    """A table of keys of a group's option."""
    yield "| key | default | type | meaning |"
    yield "|---|---|---|---|"
    for key in keys:
        default = "required" if key.default == "???" else code(key.default)
        yield f"| `{key.name}` | {default} | {code(key.type) if key.type else ''} | {cell(prose(meaning(group, key)))} |"


def code(text: str) -> str:
    """Inline code in a table, where neither backticks nor bars are safe in Markdown's own form."""
    return f"<code>{escape(text).replace('|', '&#124;').replace('`', '&#96;')}</code>"


def cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def prose(comment: str) -> str:
    """A comment as Markdown: a capital first, addresses as links, and nothing read as markup by mistake."""
    safe = re.sub(r"(?<!`)([<>*_\[\]{}])", r"\\\1", comment)
    linked = re.sub(r"https?://[^\s),;]+[^\s),;.:]", lambda found: f"<{found[0].replace(chr(92), '')}>", safe)
    return linked.replace("\n", "<br>\n")


# ------------------------------------------------------------------------------------------------ losses

NEEDS = {
    "vectors": "an embedding model (`kind=embedding`, `late_interaction`, `sparse`)",
    "token_logps": "log-probabilities of tokens (`kind=causal_lm`)",
    "parts": "a model with several parts (`kind=hybrid`)",
    "lists": "a model that reads whole lists (`kind=listwise`)",
    "answers": "ranked lists whose order is written as an answer",
    "reference": "a reference model: the model at the start of the run",
    "live_reference": "the reference model in memory during training",
    "teacher": "a teacher's scores (`pos_scores`, `neg_scores`, `scores`) or a teacher model",
    "control_tokens": "`model.control_tokens`",
    "value_head": "a value head, which is added to the model",
    "reward_head": "a reward head (`kind=reward_model`)",
}


def losses() -> str:
    """The page of the losses: an overview, and for each its formula, source, needs and keys."""
    made = [(option, _built(option)) for option in options("loss")]
    papers = _papers()
    rows = [
        f"| [`{option.name}`](#{option.name}) | {cell(prose(first(option.summary)))} | {_kind(option)} | {', '.join(sorted(loss.needs)) or 'none'} |"
        for option, loss in made
    ]
    lines = [
        "# Losses",
        "",
        "What is learned from scores. [Which loss for my data](../losses.md) helps to choose one. *Needs* names what a loss takes",
        "beside the scores and labels of candidates.",
        "",
        "| loss | in short | kind by default | needs |",
        "|---|---|---|---|",
        *rows,
        "",
    ]
    for option, loss in made:
        lines += [*_loss(option, loss, papers), ""]
    for option in options("loss/ranking"):  # losses inside a loss
        lines += [*section(option), ""]
    return "\n".join(lines)


def _loss(option: Option, loss: Loss, papers: Mapping[str, list[str]]) -> Iterator[str]:
    yield f"## {option.name} {{#{option.name}}}"
    yield ""
    yield prose(option.summary)
    yield ""
    yield f'```text title="Formula, as in {type(loss).__module__.replace(".", "/")}.py"'
    yield inspect.getdoc(type(loss)) or ""
    yield "```"
    yield ""
    yield from papers.get(f"{type(loss).__module__.replace('.', '/')}.py", [])
    yield ""
    needs = "; ".join(NEEDS[name] for name in sorted(loss.needs))
    yield f"**Needs:** {needs or 'scores and labels only'}."
    yield ""
    yield from chosen(option)
    yield from table(option.keys, option.group)


def first(text: str) -> str:
    """The first sentence of a summary, without the address of a paper."""
    joined = re.sub(r" \(https?://[^)]*\)", "", text.replace("\n", " "))
    return re.split(r"\. (?=[A-Z])", joined)[0].rstrip(".")


def _kind(option: Option) -> str:
    return next(f"`{item.partition('=')[2]}`" for item in option.chooses if item.startswith("kind="))


def _built(option: Option) -> Loss:
    """The loss of a yaml with its defaults."""
    tree: dict[str, Any] = yaml.safe_load((ROOT / "config" / "loss" / f"{option.name}.yaml").read_text())
    node: dict[str, Any] = tree["loss"]
    for group, _, name in (item.partition("=") for item in option.chooses):
        if group.startswith("loss/"):
            node = {**yaml.safe_load((ROOT / "config" / group / f"{name}.yaml").read_text()), **node}
    made: Loss = build(resolved(node, COSINES), "loss")
    return made


def _papers() -> dict[str, list[str]]:
    """Lines on sources and differences, by file, from the table of PAPERS.md."""
    found: dict[str, list[str]] = {}
    for line in (ROOT / "PAPERS.md").read_text(encoding="utf-8").splitlines():
        cells = [item.strip() for item in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) != 5 or not cells[2].startswith("`"):
            continue
        method, source, files, differs, _ = cells
        words = f"- **{method}**: {source or 'no paper'}" + (f". Here: {differs}." if differs else ".")
        for file in re.findall(r"`([^`]+)`", files):
            found.setdefault(file, []).append(words)
    return found
