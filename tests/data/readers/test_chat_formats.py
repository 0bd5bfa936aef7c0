"""Every chat form as prompt, completions and relevance: one worked record each, and what is refused."""

import json

import pytest

from rankpo.config.compose import compose
from rankpo.data.readers.chat import ChatRecords
from rankpo.data.readers.chat_formats import FORMATS, Chat, detect
from rankpo.data.readers.fields import BadRecord
from rankpo.data.readers.passes import BadRecords

USER, BLUE, GREEN = ("user", "Sky?"), "Blue.", "Green."
TEXT_PAIR = Chat("Sky?", (BLUE, GREEN), (1.0, 0.0))
PAIR = Chat((USER,), (BLUE, GREEN), (1.0, 0.0))


def turn(role, content):
    return {"role": role, "content": content}


ASK, SAY_BLUE, SAY_GREEN = turn("user", "Sky?"), turn("assistant", "Blue."), turn("assistant", "Green.")
EARLIER = [turn("user", "Hi"), turn("assistant", "Hello")]
SYSTEM = ("system", "Be brief.")
EARLIER_TURNS = (("user", "Hi"), ("assistant", "Hello"))

CASES = {
    "text pair": (
        {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."},
        Chat("The sky is", (" blue.", " green."), (1.0, 0.0)),
    ),
    "turns": ({"prompt": [ASK], "chosen": [SAY_BLUE], "rejected": [SAY_GREEN]}, PAIR),
    "implicit turns": ({"chosen": [ASK, SAY_BLUE], "rejected": [ASK, SAY_GREEN]}, PAIR),
    "implicit text": (
        {"chosen": "The sky is blue.", "rejected": "The sky is green."},
        Chat("The sky is", (" blue.", " green."), (1.0, 0.0)),
    ),
    "prompt beside whole conversations": (
        {"prompt": "Sky?", "chosen": [ASK, SAY_BLUE], "rejected": [ASK, SAY_GREEN], "margin": 2},
        PAIR,
    ),
    "text prompt before turns": ({"prompt": "Sky?", "chosen": [SAY_BLUE], "rejected": [SAY_GREEN]}, PAIR),
    "longer common run": (
        {"chosen": [*EARLIER, ASK, SAY_BLUE], "rejected": [*EARLIER, ASK, SAY_GREEN]},
        Chat((*EARLIER_TURNS, USER), (BLUE, GREEN), (1.0, 0.0)),
    ),
    "completion": ({"prompt": "The sky is", "completion": " blue."}, Chat("The sky is", (" blue.",), (1.0,))),
    "unpaired": (
        {"prompt": [ASK], "completion": [SAY_GREEN], "label": False},
        Chat((USER,), (GREEN,), (0.0,)),
    ),
    "messages": (
        {"messages": [turn("system", "Be brief."), ASK, SAY_BLUE]},
        Chat((("system", "Be brief."), USER), (BLUE,), (1.0,)),
    ),
    "text": ({"text": "Blue sky."}, Chat("", ("Blue sky.",), (1.0,))),
    "from and value": (
        {"messages": [{"from": "human", "value": "Sky?"}, {"from": "gpt", "value": "Blue."}]},
        Chat((USER,), (BLUE,), (1.0,)),
    ),
    "content in parts": (
        {"messages": [turn("user", [{"type": "text", "text": "Sky"}, {"type": "text", "text": "?"}]), SAY_BLUE]},
        Chat((USER,), (BLUE,), (1.0,)),
    ),
    "pairwise, A better": (
        {"type": "pairwise_feedback", "prompt": [ASK], "output_A": [SAY_BLUE], "output_B": [SAY_GREEN], "label": 1},
        PAIR,
    ),
    "pairwise, B better": (
        {"type": "pairwise_feedback", "prompt": [ASK], "output_A": [SAY_GREEN], "output_B": [SAY_BLUE], "label": 0},
        PAIR,
    ),
    "binary": (
        {"type": "binary_feedback", "prompt": [ASK], "output": [SAY_BLUE], "label": 1, "reward": 2.1},
        Chat((USER,), (BLUE,), (1.0,)),
    ),
    "cut when written": (
        {"type": "binary_feedback", "prompt": [ASK], "output": [SAY_BLUE], "label": 1, "finished": False},
        Chat((USER,), (BLUE,), (1.0,), finished=(False,)),
    ),
    "pairwise, one cut": (
        {
            "type": "pairwise_feedback",
            "prompt": [ASK],
            "output_A": [SAY_GREEN],
            "output_B": [SAY_BLUE],
            "label": 0,
            "finished_A": False,
        },
        Chat((USER,), (BLUE, GREEN), (1.0, 0.0), finished=(True, False)),
    ),
    "ShareGPT": (
        {
            "conversations": [{"from": "human", "value": "Sky?"}, {"from": "gpt", "value": "Blue."}],
            "system": "Be brief.",
        },
        Chat((SYSTEM, USER), (BLUE,), (1.0,)),
    ),
    "ShareGPT preference": (
        {
            "conversations": [{"from": "human", "value": "Sky?"}],
            "chosen": {"from": "gpt", "value": "Blue."},
            "rejected": {"from": "gpt", "value": "Green."},
        },
        PAIR,
    ),
    "Alpaca": ({"instruction": "Sky?", "input": "", "output": "Blue."}, Chat((USER,), (BLUE,), (1.0,))),
    "Alpaca with everything": (
        {
            "instruction": "Translate.",
            "input": "bleu",
            "output": "Blue.",
            "system": "Be brief.",
            "history": [["Hi", "Hello"]],
        },
        Chat((SYSTEM, *EARLIER_TURNS, ("user", "Translate.\nbleu")), (BLUE,), (1.0,)),
    ),
    "Alpaca preference": ({"instruction": "Sky?", "input": "", "chosen": "Blue.", "rejected": "Green."}, PAIR),
    "turns before texts": ({"prompt": [ASK], "chosen": "Blue.", "rejected": "Green."}, PAIR),
    "prompt before shared turns": (
        {"prompt": EARLIER, "chosen": [ASK, SAY_BLUE], "rejected": [ASK, SAY_GREEN]},
        Chat((*EARLIER_TURNS, USER), (BLUE, GREEN), (1.0, 0.0)),
    ),
    "text prompt before shared turns": (
        {"prompt": "Hi", "chosen": [EARLIER[1], ASK, SAY_BLUE], "rejected": [EARLIER[1], ASK, SAY_GREEN]},
        Chat((*EARLIER_TURNS, USER), (BLUE, GREEN), (1.0, 0.0)),
    ),
    "system before shared turns": (
        {"prompt": [turn("system", "Be brief.")], "chosen": [ASK, SAY_BLUE], "rejected": [ASK, SAY_GREEN]},
        Chat((SYSTEM, USER), (BLUE, GREEN), (1.0, 0.0)),
    ),
    "shared turns with a system before the prompt": (
        {
            "prompt": [ASK],
            "chosen": [turn("system", "Be brief."), ASK, SAY_BLUE],
            "rejected": [turn("system", "Be brief."), ASK, SAY_GREEN],
        },
        Chat((SYSTEM, USER), (BLUE, GREEN), (1.0, 0.0)),
    ),
    "prompt that ends with the assistant": (
        {"prompt": [ASK, turn("assistant", "It is")], "chosen": " blue.", "rejected": " green."},
        Chat((USER, ("assistant", "It is")), (" blue.", " green."), (1.0, 0.0)),
    ),
    "implicit words": (
        {"chosen": "Sky: blue", "rejected": "Sky: black"},
        Chat("Sky:", (" blue", " black"), (1.0, 0.0)),
    ),
    "implicit numbers": (
        {"chosen": "In 1984.", "rejected": "In 1912."},
        Chat("In", (" 1984.", " 1912."), (1.0, 0.0)),
    ),
    "implicit Chinese": (
        {"chosen": "天空是蓝色", "rejected": "天空是绿色"},
        Chat("天空是", ("蓝色", "绿色"), (1.0, 0.0)),
    ),
    "implicit, nothing shared": ({"chosen": "Blue", "rejected": "Black"}, Chat("", ("Blue", "Black"), (1.0, 0.0))),
    "null keys of a turn": (
        {"messages": [ASK, {**SAY_BLUE, "tool_calls": None, "name": None, "weight": None}]},
        Chat((USER,), (BLUE,), (1.0,)),
    ),
    "weightless last turn": (
        {"messages": [ASK, {**SAY_BLUE, "weight": 1}, turn("user", "Sure?"), {**SAY_GREEN, "train": False}]},
        Chat((USER,), (BLUE,), (1.0,)),
    ),
    "weightless earlier turn": (
        {"messages": [turn("user", "Hi"), turn("assistant", "Hello") | {"weight": 0}, ASK, SAY_BLUE]},
        Chat((*EARLIER_TURNS, USER), (BLUE,), (1.0,)),
    ),
    "question beside answers": ({"question": "Sky?", "chosen": "Blue.", "rejected": "Green."}, TEXT_PAIR),
    "query beside answers": ({"query": "Sky?", "chosen": "Blue.", "rejected": "Green."}, TEXT_PAIR),
    "input beside answers": ({"input": "Sky?", "chosen": "Blue.", "rejected": "Green."}, TEXT_PAIR),
    "system, question": (
        {"system": "Be brief.", "question": "Sky?", "chosen": "Blue.", "rejected": "Green."},
        Chat((SYSTEM, USER), (BLUE, GREEN), (1.0, 0.0)),
    ),
    "system, prompt of turns": (
        {"system": "Be brief.", "prompt": [ASK], "chosen": [SAY_BLUE], "rejected": [SAY_GREEN]},
        Chat((SYSTEM, USER), (BLUE, GREEN), (1.0, 0.0)),
    ),
    "system of a completion": (
        {"system": "Be brief.", "prompt": "Sky?", "completion": "Blue.", "label": True},
        Chat((SYSTEM, USER), (BLUE,), (1.0,)),
    ),
    "empty system": ({"system": "", "prompt": "Sky?", "completion": "Blue."}, Chat("Sky?", (BLUE,), (1.0,))),
    "label in a table": ({"prompt": "Sky?", "completion": "Green.", "label": "False"}, Chat("Sky?", (GREEN,), (0.0,))),
    "parts of texts": ({"messages": [turn("user", ["Sky", {"text": "?"}]), SAY_BLUE]}, Chat((USER,), (BLUE,), (1.0,))),
    "scalar": (
        {"type": "scalar_feedback", "prompt_id": 7, "prompt": [ASK], "output": [SAY_BLUE], "reward": 2.1},
        Chat((USER,), (BLUE,), (2.1,), "7"),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_each_form_is_known_by_its_keys(case):
    record, expected = CASES[case]
    before = json.dumps(record)
    assert FORMATS[detect(record)](record) == expected
    assert json.dumps(record) == before


SETS = {
    "hh": (
        {
            "chosen": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Sky?\n\nAssistant: Blue.",
            "rejected": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Sky?\n\nAssistant: Green.",
        },
        Chat((*EARLIER_TURNS, USER), (BLUE, GREEN), (1.0, 0.0)),
    ),
    "shp": (
        {"history": "Sky?", "human_ref_A": "Green.", "human_ref_B": "Blue.", "labels": 0, "score_A": 4, "score_B": 8},
        PAIR,
    ),
    "imdb": (
        {"text": "One two three four five six seven eight nine ten.", "label": 1},
        Chat("One two three four five six seven eight", (" nine ten.",), (1.0,)),
    ),
}


@pytest.mark.parametrize("name", SETS)
def test_hub_sets(name):
    record, expected = SETS[name]
    assert FORMATS[name](record) == expected


def test_shp_leaves_out_what_is_nearly_equal():
    assert FORMATS["shp"]({**SETS["shp"][0], "score_A": 5, "score_B": 8}) is None


def without(case, key):
    return {name: value for name, value in CASES[case][0].items() if name != key}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "chosen and rejected are equal"),
        ({"chosen": "The sky", "rejected": "The sky is"}, "the end of the prompt is unknown"),
        ({"chosen": [ASK, SAY_BLUE], "rejected": "Green."}, "both be texts or both be lists"),
        (
            {"chosen": [ASK, SAY_BLUE, ASK, SAY_BLUE], "rejected": [ASK, SAY_GREEN]},
            "chosen must have exactly one assistant turn",
        ),
        ({"chosen": [SAY_BLUE], "rejected": [SAY_GREEN]}, "the record has no prompt"),
        ({"prompt": "a", "chosen": " ", "rejected": "b"}, "a completion is empty"),
        ({"prompt": "a", "completion": "b", "label": 2}, "label is 2; allowed: true, false, 1, 0"),
        ({"messages": [SAY_BLUE, ASK]}, "messages must end with an assistant turn"),
        ({"messages": [turn("narrator", "x"), SAY_BLUE]}, "role 'narrator' is not known; allowed: system, user"),
        ({"messages": [ASK, {"role": "assistant"}]}, r"messages\[1\] must hold a role and a text"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "images": ["x"]}, "images are not supported"),
        (without("pairwise, A better", "output_B"), "no field 'output_B'"),
        (without("scalar", "prompt_id"), "no field 'prompt_id'"),
        ({"type": "sample", "prompt": [ASK], "output": "Blue."}, "judge it with task=annotate first"),
        ({"type": "ranking", "prompt": [ASK]}, "type is 'ranking'; allowed: pairwise_feedback"),
        ({"question": "a"}, "no chat format has these keys"),
        ({"messages": [ASK, {**SAY_BLUE, "tool_calls": [{"id": 1}]}]}, r"messages\[1\].tool_calls is not supported"),
        (
            {"messages": [ASK, {**SAY_BLUE, "reasoning_content": "x"}]},
            r"messages\[1\].reasoning_content is not .*<think>",
        ),
        ({"messages": [{**ASK, "name": "Ann"}, SAY_BLUE]}, r"messages\[0\].name is not supported"),
        ({"messages": [ASK, {**SAY_BLUE, "weight": 0.5}]}, r"messages\[1\].weight is 0.5; allowed: 0, 1, false, true"),
        ({"messages": [ASK, {**SAY_BLUE, "weight": 1, "train": False}]}, "weight and train, which contradict"),
        ({"messages": [ASK, SAY_BLUE], "tools": [{"name": "x"}]}, "tools are not supported"),
        ({"messages": [ASK, SAY_BLUE], "chat_template_kwargs": {"x": 1}}, "chat_template_kwargs are not supported"),
        (
            {"prompt": [], "chosen": [SAY_BLUE], "rejected": [SAY_GREEN]},
            "prompt is an empty list; it needs at least one",
        ),
        (
            {"prompt": [ASK], "chosen": [{**SAY_BLUE, "weight": 0}], "rejected": [SAY_GREEN]},
            "a pair trains both answers",
        ),
        ({"messages": [turn("system", "a"), ASK, SAY_BLUE], "system": "b"}, "are two system prompts"),
        (
            {
                "prompt": [turn("system", "a"), ASK],
                "chosen": [turn("system", "b"), SAY_BLUE],
                "rejected": [turn("system", "b"), SAY_GREEN],
            },
            "begin with different system turns",
        ),
        ({"instruction": "a", "output": "b", "history": ["c"]}, r"history\[0\] must be a question and an answer"),
        ({"type": "binary_feedback", "prompt": [ASK], "output": "b", "label": 1, "finished": "no"}, "finished is 'no'"),
        ({"prompt": "a", "chosen": "b", "rejected": None}, "field 'rejected' is null"),
        ({"prompt": "a", "chosen": "b", "rejected": []}, "rejected is an empty list; allowed: a text, or a list"),
        ({"prompt": "a", "chosen": "b", "rejected": 5}, "rejected is int; allowed: a text, or a list of turns"),
        ({"prompt": "a", "chosen": "b", "rejected": [SAY_GREEN]}, "but chosen is a text, rejected has turns"),
        ({"prompt": "a", "completion": "b", "label": "maybe"}, "label is 'maybe'; allowed: true, false, 1, 0"),
        ({"messages": json.dumps([ASK, SAY_BLUE])}, "messages is a text; it must be a list of turns"),
        ({"conversations": "hello"}, "conversations is a text; it must be a list of turns"),
        ({"messages": [turn("user", [{"type": "text", "text": None}]), SAY_BLUE]}, r"content\[0\] must hold a text"),
        ({"messages": [turn("user", [{"type": "text"}]), SAY_BLUE]}, r"messages\[0\].content\[0\] must hold a text"),
        ({"messages": [turn("user", [{"type": "image"}]), SAY_BLUE]}, "the type 'image', but only texts are read"),
        ({"messages": [turn("user", [3]), SAY_BLUE]}, r"content\[0\] must be an object with type and text, got int"),
    ],
)
def test_refused_by_name(record, message):
    with pytest.raises(BadRecord, match=message):
        FORMATS[detect(record)](record)


def test_a_turn_that_is_not_trained_gives_nothing():
    """Its record says so itself, so it is no bad record."""
    for flag in ({"weight": 0}, {"train": False}, {"training": False}, {"loss": False}):
        assert FORMATS["messages"]({"messages": [ASK, {**SAY_BLUE, **flag}]}) is None
        assert FORMATS["trl_completion"]({"prompt": [ASK], "completion": [{**SAY_BLUE, **flag}]}) is None


def test_all_turns_of_the_assistant(tmp_path):
    """One example for each, behind the turns before it, and none for those that are flagged."""
    last = [turn("user", "Sure?"), {**SAY_GREEN, "weight": 0}, turn("user", "Really?"), turn("assistant", "Yes.")]
    path = write(tmp_path, [{"conversations": [*EARLIER, ASK, SAY_BLUE, *last]}, {"text": "Grass."}])
    found = list(ChatRecords(name="x", path=path, train_turns="all").examples())
    assert [(e.id, e.query, e.candidates) for e in found] == [
        ("x:data.json[0]#1", EARLIER_TURNS[:1], ("Hello",)),
        ("x:data.json[0]#3", (*EARLIER_TURNS, USER), (BLUE,)),
        (
            "x:data.json[0]#7",
            (*EARLIER_TURNS, USER, ("assistant", BLUE), ("user", "Sure?"), ("assistant", GREEN), ("user", "Really?")),
            ("Yes.",),
        ),
        ("x:data.json[1]", "", ("Grass.",)),
    ]
    (last_one, _) = ChatRecords(name="x", path=path).examples()
    assert (last_one.id, last_one.candidates) == ("x:data.json[0]", ("Yes.",))
    with pytest.raises(ValueError, match="train_turns must be one of last, all, got 'first'"):
        ChatRecords(name="x", path=path, train_turns="first")


def test_fields_that_nothing_reads_are_counted(tmp_path):
    record = {"messages": [{**ASK, "timestamp": 3}, {**SAY_BLUE, "weight": 0}], "source": "a", "lang": None}
    dataset = ChatRecords(name="x", path=write(tmp_path, [record, {**record, "source": "b"}]))
    assert list(dataset.examples()) == []
    assert dataset.report.unused == ["messages[].timestamp (2 records)", "source (2 records)"]
    assert dataset.report.filtered == 2


def test_scalar_feedback_keeps_which_completions_were_cut(tmp_path):
    scalar = CASES["scalar"][0]
    path = write(tmp_path, [scalar, {**scalar, "output": [SAY_GREEN], "finished": False}])
    (example,) = ChatRecords(name="x", path=path).examples()
    assert example.finished == (True, False)


def write(folder, records, name="data.json"):
    path = folder / name
    path.write_text(json.dumps(records))
    return str(path)


def test_scalar_feedback_of_one_prompt_is_one_example(tmp_path):
    """Records of a prompt_id need not stand together; the other key's come in their own example."""
    scalar = CASES["scalar"][0]
    records = [
        scalar,
        {**scalar, "prompt_id": 8, "prompt": [turn("user", "Grass?")], "output": [SAY_GREEN], "reward": 1.0},
        {**scalar, "output": [SAY_GREEN], "reward": -0.4},
    ]
    first, second = ChatRecords(name="x", path=write(tmp_path, records)).examples()
    assert (first.query, first.candidates, first.relevance) == ((USER,), (BLUE, GREEN), (2.1, -0.4))
    assert second.candidates == (GREEN,) and second.source == "data.json[1]"


def test_one_type_and_one_split_in_a_file(tmp_path):
    pairwise, binary = CASES["pairwise, A better"][0], CASES["binary"][0]
    path = write(tmp_path, [pairwise, binary])
    with pytest.raises(BadRecords, match=r"data.json\[1\]: type is 'binary_feedback' in a file of 'pairwise_feedback'"):
        list(ChatRecords(name="x", path=path).examples())
    path = write(tmp_path, [{**pairwise, "split": "train"}, {**pairwise, "split": "test"}, pairwise])
    chosen = ChatRecords(name="x", path=path, split="train")
    assert [example.source for example in chosen.examples()] == ["data.json[0]", "data.json[2]"]
    assert chosen.filtered == 1


def test_at_most_so_many_pairs_of_a_prompt(tmp_path):
    records = [{"prompt": p, "chosen": f"a{n}", "rejected": f"b{n}"} for n, p in enumerate("xxyxx")]
    chosen = ChatRecords(name="x", path=write(tmp_path, records), max_pairs=2)
    assert [(e.query, e.candidates[0]) for e in chosen.examples()] == [("x", "a0"), ("x", "a1"), ("y", "a2")]
    assert [e.query for e in ChatRecords(name="x", path=chosen.path, limit=3).examples()] == ["x", "x", "y"]


def test_oasst_pairs_neighbouring_ranks(tmp_path):
    """Three English replies give two pairs; a reply in another language and an unranked one give none."""

    def message(name, parent, text, role="assistant", rank=None, lang="en"):
        return {"message_id": name, "parent_id": parent, "text": text, "role": role, "rank": rank, "lang": lang}

    records = [
        message("a2", "q", "Worst.", rank=2),
        message("q", None, "Sky?", role="prompter"),
        message("a0", "q", "Blue.", rank=0),
        message("a1", "q", "Green.", rank=1),
        message("de", "q", "Blau.", rank=3, lang="de"),
        message("u", "q", "Grey."),
        message("q2", "a1", "Sure?", role="prompter", rank=0),
        message("b1", "q2", "No.", rank=1),
        message("b0", "q2", "Yes.", rank=0),
    ]
    found = [
        (e.query, e.candidates) for e in ChatRecords(name="x", path=write(tmp_path, records), format="oasst").examples()
    ]
    assert found == [
        ((USER,), ("Blue.", "Green.")),
        ((USER,), ("Green.", "Worst.")),
        ((USER, ("assistant", "Green."), ("user", "Sure?")), ("Yes.", "No.")),
    ]


def test_bad_records_are_collected_or_skipped(tmp_path):
    good = CASES["text pair"][0]
    path = write(tmp_path, [good, {**good, "rejected": good["chosen"]}, {**good, "chosen": ""}, good])
    with pytest.raises(BadRecords) as error:
        list(ChatRecords(name="x", path=path).examples())
    assert str(error.value).splitlines() == [
        "datasets.x: data.json[1]: chosen and rejected are equal",
        "datasets.x: data.json[2]: a completion is empty",
    ]
    skipping = ChatRecords(name="x", path=path, on_bad_record="skip")
    assert len(list(skipping.examples())) == 2 and len(skipping.bad) == 2


def test_fingerprint_follows_contents_and_choices(tmp_path):
    one = ChatRecords(name="x", path=write(tmp_path, [CASES["text pair"][0]], "a.json"))
    same = ChatRecords(name="y", path=write(tmp_path, [CASES["text pair"][0]], "b.json"), weight=2.0)
    other = ChatRecords(name="x", path=write(tmp_path, [CASES["turns"][0]], "c.json"))
    limited = ChatRecords(name="x", path=one.path, limit=3)
    assert one.fingerprint() == same.fingerprint()
    assert len({one.fingerprint(), other.fingerprint(), limited.fingerprint()}) == 3


@pytest.mark.parametrize(("name", "expected"), [("hh", SETS["hh"][1]), ("shp", PAIR), ("ultrabin", PAIR)])
def test_the_hub_sets_load_through_the_datasets_library(tmp_path, monkeypatch, name, expected):
    """Their yaml, with a folder in the place of the hub's: the same loading code, offline."""
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    record = CASES["prompt beside whole conversations"][0] if name == "ultrabin" else SETS[name][0]
    folder = tmp_path / "copy"
    folder.mkdir()
    write(folder, [record], "train.json")
    options = [f"datasets=[{name}]", f"datasets.{name}.hub={folder}", f"datasets.{name}.split=train"]
    options += ["loss=dpo", "model=tiny_pythia"]
    (dataset,) = compose(options).datasets
    (example,) = dataset.examples()
    assert (example.query, example.candidates, example.relevance) == (
        expected.prompt,
        expected.completions,
        expected.relevance,
    )
    assert dataset.fingerprint() == dataset.fingerprint()


@pytest.mark.parametrize("name", ["hh", "shp", "ultrabin", "oasst", "imdb"])
def test_yaml_of_the_hub_sets(name):
    (dataset,) = compose([f"datasets=[{name}]", "loss=dpo", "model=tiny_pythia"]).datasets
    assert dataset.hub is not None and dataset.split is not None and dataset.name == name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "set either path .* or hub"),
        ({"path": "x", "hub": "y"}, "set either path .* or hub"),
        ({"hub": "y"}, "split must be set with hub"),
        ({"hub": "y", "split": "train", "format": "nope"}, "format must be one of auto, trl_preference"),
        ({"hub": "y", "split": "train", "limit": 0}, "limit must be >= 1 or null, got 0"),
    ],
)
def test_wrong_keys(arguments, message):
    with pytest.raises(ValueError, match=message):
        ChatRecords(name="x", **arguments)
