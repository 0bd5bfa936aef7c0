"""debug=profile: the trace of a few updates, and the table of what takes most time."""

import json
from dataclasses import dataclass

from rankpo.trainers.profiling import heaviest, waits_line
from tests.runs import CONTRASTIVE, train


def test_a_trace_and_a_table(tmp_path, capsys):
    train(
        *CONTRASTIVE, "debug=profile", f"cache_dir={tmp_path}", f"run_dir={tmp_path}/run", "trainer.profile_updates=2"
    )
    trace = json.loads((tmp_path / "run" / "profile.json").read_text())
    steps = {event["name"] for event in trace["traceEvents"] if event.get("name", "").startswith("ProfilerStep#")}
    assert len(steps) == 2
    assert any(event.get("name") == "aten::mm" for event in trace["traceEvents"])
    printed = capsys.readouterr()
    assert "over 2 updates" in printed.out and "aten::" in printed.out
    assert "profile.json" in printed.err
    assert (tmp_path / "run" / "FINAL").exists()


@dataclass
class Event:
    key: str
    count: int = 1
    self_cpu_time_total: float = 0.0
    self_device_time_total: float = 0.0


def test_the_device_orders_the_table_where_there_is_one():
    events = [Event("aten::mm", 3, 5e3, 1e3), Event("aten::add", 2, 1e3, 3e3), Event("ProfilerStep*", 1, 9e9, 0)]
    rows = heaviest(events)
    assert [row["operator"] for row in rows] == ["aten::add", "aten::mm"]
    assert rows[0] == {"operator": "aten::add", "GPU ms": "3.0", "share": "75.0%", "calls": 2}
    assert [row["operator"] for row in heaviest([Event("aten::mm", 3, 5e3), Event("aten::add", 2, 6e3)])] == [
        "aten::add",
        "aten::mm",
    ]


def test_waits_are_counted_per_update():
    events = [Event("cudaStreamSynchronize", 6), Event("aten::mm", 100), Event("Memcpy DtoH (Device -> Pageable)", 3)]
    assert waits_line(events, 3) == (
        "waits for the device per update: cudaStreamSynchronize 2.0, Memcpy DtoH (Device -> Pageable) 1.0"
    )
    assert waits_line([Event("aten::mm")], 3) == "waits for the device per update: none"
