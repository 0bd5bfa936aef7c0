"""task=annotate against a real server on loopback: well-behaved, misbehaving, and killed again and again."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import pytest

from rankpo.data.readers import records as readers
from rankpo.errors import ConfigError
from rankpo.judges.base import JudgeStopped
from rankpo.judges.records import Records
from rankpo.judges.server import ServerJudge
from rankpo.judges.templates import Template
from rankpo.tasks.annotate import Unfinished
from tests.judges.server import FAULTS, serving
from tests.runs import train
from tests.starts import Started

QUERIES, PASSAGES = 6, 8


@pytest.fixture
def files(tmp_path) -> Path:
    """A run over passages of which the one with the larger value is to be preferred."""
    queries = [{"_id": f"q{n}", "text": f"query {n}"} for n in range(QUERIES)]
    passages = [{"_id": f"p{n}", "text": f"passage with value {n * 7 % 31} in it"} for n in range(PASSAGES)]
    for name, records in (("queries", queries), ("passages", passages)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    lines = [f"q{q} Q0 p{p} {p + 1} {PASSAGES - p} tag" for q in range(QUERIES) for p in range(PASSAGES)]
    (tmp_path / "run.trec").write_text("\n".join(lines) + "\n")
    return tmp_path


def overrides(files: Path, url: str, *more: str) -> list[str]:
    return [
        "task=annotate", "model=tiny_bert", "judge=openai", f"judge.base_url={url}", "judge.model=loopback",
        "judge.backoff=0.01", "judge.timeout=4", "judge.concurrency=4", f"task.run={files}/run.trec",
        f"task.queries={files}/queries.jsonl", f"task.corpus={files}/passages.jsonl", "task.pairs.per_query=4",
        f"cache_dir={files}/cache", "exp_name=a", *more,
    ]  # fmt: skip


def preferences(files: Path) -> list[dict]:
    return [
        json.loads(line) for line in (files / "cache" / "a" / "annotate" / "preferences.jsonl").read_text().splitlines()
    ]


def output(files: Path) -> Path:
    return files / "cache" / "a" / "annotate"


def value(text: str) -> int:
    return int(text.split("value")[1].split()[0])


def check(records: list[dict]) -> None:
    assert len(records) == QUERIES * 4
    for record in records:
        winner = "A" if value(record["passage1"]) > value(record["passage2"]) else "B"
        assert (record["preferred"], record["confidence_score"]) == (winner, 90)
        assert [call["order"] for call in record["calls"]] == ["given", "swapped"]


def test_a_server_that_behaves(files):
    with serving() as server:
        train(*overrides(files, server.url))
        check(preferences(files))
        assert set(server.answered.values()) == {1}
        train(*overrides(files, server.url))  # everything is known: nobody is asked
        assert sum(server.calls.values()) == QUERIES * 4 * 2
    report = json.loads((files / "cache" / "a" / "annotate" / "report.json").read_text())
    assert report["orders_agree"]["share"] == 1
    assert report["first_shown_preferred"]["share"] == 0.5


def test_the_written_file_is_training_data(files):
    with serving() as server:
        train(*overrides(files, server.url))
    path = files / "cache" / "a" / "annotate" / "preferences.jsonl"
    train(
        "loss=rankpo", "model=tiny_bert", "datasets=[rankpo]", f"datasets.rankpo.path={path}", "trainer.max_steps=1",
        f"cache_dir={files}/cache", "exp_name=trained",
    )  # fmt: skip
    assert (files / "cache" / "trained" / "FINAL").is_dir()


def test_prompts_of_records_are_kept(files, capsys):
    """A record's prompt stands in the training file, and is read from there as the query's prompt."""
    records = [
        {"query": f"query {n}", "positives": [f"text with value {n} in it"], "negatives": [f"other value {n + 9} here"]}
        for n in range(4)
    ]
    records[0]["prompt"] = "Find it: "
    (files / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    chosen = ("datasets=[rankpo]", f"datasets.rankpo.path={files}/records.jsonl", "task.run=null", "task.queries=pool")
    with serving() as server:
        train(*overrides(files, server.url, *chosen, "task.corpus=pool"))
    written = preferences(files)
    assert {record["query"]: record.get("prompt") for record in written}["query 0"] == "Find it: "
    assert all("prompt" not in record for record in written if record["query"] != "query 0")
    assert "1 queries have a prompt of their own" in capsys.readouterr().err
    path = files / "cache" / "a" / "annotate" / "preferences.jsonl"
    examples = list(readers.Records(name="r", path=str(path)).examples())
    assert {example.query_prompt for example in examples if example.query == "query 0"} == {"Find it: "}


def test_a_server_that_misbehaves(files):
    """429, 500, hangs, halves of answers, wrong keys and empty talk: every prompt is answered in the end, once."""
    with serving(*FAULTS, mixed=True) as server:
        train(*overrides(files, server.url))
        check(preferences(files))
        assert set(server.answered.values()) == {1}
        assert sum(server.calls.values()) > QUERIES * 4 * 2


def test_words_without_a_verdict_are_asked_once_more_and_then_listed(files):
    with serving(*["no words"] * 9) as server:
        with pytest.raises(Unfinished, match="none of the 2 pairs could be judged; 2 had answers without a verdict"):
            train(*overrides(files, server.url, "task.limit=2", "task.order=given"))
        assert sum(server.calls.values()) == 4
    failed = [json.loads(line) for line in (output(files) / "failed.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in failed] == ["unparsable"] * 2
    assert all("I would rather not say." in line["error"] for line in failed)
    assert not (output(files) / "preferences.jsonl").exists()
    assert json.loads((output(files) / "report.json").read_text())["failed"] == 2


def test_a_further_attempt_is_made_on_request_and_no_earlier_one_is_paid_again(files):
    limits = ("task.limit=2", "task.order=given")
    with serving(*["no words"] * 9) as server, pytest.raises(Unfinished):
        train(*overrides(files, server.url, *limits))
    with serving() as server:
        with pytest.raises(Unfinished):
            train(*overrides(files, server.url, *limits))
        assert server.calls == {}
        train(*overrides(files, server.url, *limits, "task.max_reasks=2"))
        assert sum(server.calls.values()) == 2
    assert len(preferences(files)) == 2
    assert (output(files) / "failed.jsonl").read_text() == ""


def test_what_calls_cost_is_logged_and_summed_over_starts(files):
    """Three dollars a million prompt tokens, five for the answers, of 12 tokens each."""
    priced = ("judge.price={input:3,output:5}", "task.order=given")
    with serving() as server:
        with pytest.raises(Unfinished, match="max_calls=5"):
            train(*overrides(files, server.url, *priced, "task.max_calls=5"))
        train(*overrides(files, server.url, *priced))
    lines = [json.loads(line) for line in (output(files) / "cost.jsonl").read_text().splitlines()]
    assert [line["call"] for line in lines] == list(range(1, QUERIES * 4 + 1))
    report = json.loads((output(files) / "report.json").read_text())
    assert (report["cost"]["calls"], report["cost_of_all_starts"]["calls"]) == (QUERIES * 4 - 5, QUERIES * 4)
    prompts = sum(line["usage"]["prompt_tokens"] for line in lines)
    tokens = {"prompt_tokens": prompts, "completion_tokens": 12 * QUERIES * 4}
    assert report["cost_of_all_starts"]["tokens"] == tokens
    assert report["cost_of_all_starts"]["dollars"] == pytest.approx((3 * prompts + 5 * 12 * QUERIES * 4) / 1e6)
    assert sum(line["dollars"] for line in lines) == pytest.approx(report["cost_of_all_starts"]["dollars"])


def test_a_budget_in_dollars_counts_all_starts(files):
    """A dollar an answer: two starts with 3 dollars make three calls, one with 5 makes two more."""
    priced = ("judge.price={output:83333.34}", "judge.concurrency=1")
    with serving() as server:
        for budget, calls in ((3, 3), (3, 3), (5, 5)):
            with pytest.raises(Unfinished, match=f"max_cost={budget}.0 dollars are spent"):
                train(*overrides(files, server.url, *priced, f"task.max_cost={budget}.0"))
            assert sum(server.calls.values()) == calls


def test_another_template_asks_anew_and_the_first_answers_are_not_mixed_in(files):
    other = "judge.template.criteria=Which one is newer?"
    with serving() as server:
        train(*overrides(files, server.url))
        before = prompts(files)
        train(*overrides(files, server.url, other, "task.limit=3"))
        assert sum(server.calls.values()) == QUERIES * 4 * 2 + 3 * 2
        assert len(prompts(files)) == 3 * 2 and not prompts(files) & before
        train(*overrides(files, server.url))
        assert sum(server.calls.values()) == QUERIES * 4 * 2 + 3 * 2
    assert prompts(files) == before
    check(preferences(files))


def prompts(files: Path) -> set[str]:
    return {call["prompt_hash"] for record in preferences(files) for call in record["calls"]}


def test_texts_that_the_judge_does_not_see_whole_are_counted(files, capsys):
    with serving() as server:
        train(*overrides(files, server.url, "judge.template.max_characters=22", "task.dry_run=true"))
    assert f"0 of {QUERIES} queries and " in capsys.readouterr().err
    with serving() as server:
        train(*overrides(files, server.url, "task.dry_run=true"))
    assert "max_characters" not in capsys.readouterr().err


def test_a_refused_key_stops_at_once_and_nothing_is_lost(files):
    with serving("401") as server, pytest.raises(Unfinished, match=r"401.*OPENAI_API_KEY"):
        train(*overrides(files, server.url))
    with serving() as server:
        train(*overrides(files, server.url))
    check(preferences(files))


def test_a_server_that_is_gone_is_not_asked_for_every_pair(files):
    """Ten pairs in a row, and those that ran beside the last; nothing of it is kept as an answer."""
    with serving() as server:
        gone = server.url
    options = ("judge.max_retries=0", "judge.backoff=0", "judge.concurrency=2")
    with pytest.raises(
        Unfinished, match=r"^10 consecutive pairs had no answer, the last because of: connection to .*refused.*0 of 24"
    ):
        train(*overrides(files, gone, *options))
    assert 10 <= len((output(files) / "failed.jsonl").read_text().splitlines()) <= 11
    with serving() as server:
        train(*overrides(files, server.url))
    check(preferences(files))


def test_a_budget_ends_the_task_in_order(files):
    with serving() as server:
        with pytest.raises(Unfinished, match="max_calls=9"):
            train(*overrides(files, server.url, "task.max_calls=9"))
        assert sum(server.calls.values()) == 9
        assert not (files / "cache" / "a" / "annotate" / "preferences.jsonl").exists()
        train(*overrides(files, server.url))
        assert sum(server.calls.values()) == QUERIES * 4 * 2


@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_killed_again_and_again_it_ends_as_if_undisturbed(files, kills):
    """SIGKILL at random moments; the file is that of an undisturbed run, and no kept answer is asked for again."""
    with serving(*FAULTS, mixed=True) as server:
        options = overrides(files, server.url, "judge.concurrency=1")
        rng = random.Random(5)
        answers = files / "cache" / "judge" / "loopback.jsonl"
        for _ in range(kills):
            server.limit = len(server.answered) + rng.randint(1, 4)
            started = Started(*options)
            started.until(server.is_spent)
            time.sleep(rng.random() * 0.02)
            started.kill()
        server.limit = None
        train(*options)
        check(preferences(files))
        # an answer on its way when the process died was not kept: at most one for each kill
        assert sum(server.answered.values()) - len(server.answered) <= kills
        assert len(answers.read_text().splitlines()) == len(
            {json.loads(line)["prompt_hash"] for line in answers.read_text().splitlines()}
        )


def test_dry_run_asks_nothing(files):
    with serving() as server:
        train(*overrides(files, server.url, "task.dry_run=true"))
        assert server.calls == {}


def test_max_cost_without_prices_is_refused(files):
    with pytest.raises(ConfigError, match=r"judge\.price"):
        train(*overrides(files, "http://127.0.0.1:1/v1", "task.max_cost=1"))


def test_no_key_is_written_anywhere(files, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    with serving() as server:
        train(*overrides(files, server.url, "task.limit=2"))
    written = b"".join(path.read_bytes() for path in (files / "cache").rglob("*") if path.is_file())
    assert b"very-secret" not in written


def test_records_survive_a_torn_last_line(tmp_path):
    path = tmp_path / "records.jsonl"
    records = Records(path, "key")
    records.add({"key": "a", "value": 1})
    records.close()
    with path.open("ab") as file:
        file.write(b'{"key": "b", "val')
    again = Records(path, "key")
    assert [record["key"] for record in again] == ["a"]
    again.add({"key": "c"})
    again.close()
    assert [json.loads(line)["key"] for line in path.read_text().splitlines()] == ["a", "c"]


def test_a_spoilt_line_in_the_middle_is_named(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text('{"key": "a"}\nnot json\n{"key": "b"}\n')
    with pytest.raises(ValueError, match=r"records\.jsonl:2"):
        Records(path, "key")


def test_rules_judge_agrees_with_the_world(tmp_path):
    data = ["datasets=[jobs]", "datasets.jobs.num_profiles=60", "datasets.jobs.num_posts=5"]
    judge = ["judge=rules", "judge.num_profiles=60", "judge.num_posts=5"]
    train("task=annotate", "model=tiny_bert", *data, *judge, f"cache_dir={tmp_path}", "exp_name=a")
    report = json.loads((tmp_path / "a" / "annotate" / "report.json").read_text())
    assert report["orders_agree"]["share"] == 1


def test_rules_judge_refuses_other_texts(files):
    with pytest.raises(Unfinished, match=r"datasets=\[jobs\]"):
        train(*overrides(files, "http://127.0.0.1:1/v1")[:2], "judge=rules", *overrides(files, "http://x")[8:])


def test_server_judge_names_a_wrong_address():
    with pytest.raises(ValueError, match="http"):
        ServerJudge(base_url="localhost", model="m", template=Template(prompt="{query}{passage_a}{passage_b}"))


def test_stopping_is_no_failure():
    judge = ServerJudge(
        base_url="http://127.0.0.1:1/v1", model="m", template=Template(prompt="{query}{passage_a}{passage_b}"),
        max_retries=0, backoff=0,
    )  # fmt: skip
    with pytest.raises(RuntimeError) as caught:
        judge.ask(judge.request("q", "a", "b"))
    assert not isinstance(caught.value, JudgeStopped)
