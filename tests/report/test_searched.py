"""Results of task=frontier in a report: the Pareto line of each search, and the seeds of a recipe as one point."""

import statistics

import pytest

from rankpo.errors import StorageError
from rankpo.report.groups import group_runs
from rankpo.report.page import Content, render
from rankpo.report.runs import open_runs
from rankpo.report.searched import searched
from rankpo.storage.json_files import write_json

LABELS = {"s1": "head and prior", "s2": "head and prior"}


def write_search(folder, places, chosen, kept="dev/ndcg@20"):
    """frontier.json with models at (kept, agreement); the first is the start model."""
    folder.mkdir(parents=True)
    models = [{"source": "x", "kept": x, "agreement": y, "metrics": {}} for x, y in places]
    values = {"kept": kept, "agreement": "pairs/accuracy", "floor": 0.98, "chosen": chosen, "candidates": models}
    write_json(folder / "frontier.json", values)
    return str(folder)


@pytest.fixture
def folders(tmp_path):
    return [
        write_search(tmp_path / "s1", [(1, 0.5), (1.1, 0.6), (0.99, 0.7), (0.8, 0.65)], 2),
        write_search(tmp_path / "s2", [(1, 0.5), (1.01, 0.74)], 1),
        write_search(tmp_path / "other", [(1, 0.5), (1.2, 0.55)], None),
    ]


def test_seeds_are_one_point_and_every_search_has_its_line(folders):
    (found,) = searched(group_runs(open_runs(folders), LABELS))
    start, chosen = found.points
    assert (start.x, start.y, start.role) == (1, 0.5, "baseline")
    assert (chosen.name, chosen.seeds) == ("head and prior", 2)
    assert chosen.x == pytest.approx(1.0) and chosen.y == pytest.approx(0.72)
    assert chosen.x_spread == pytest.approx(statistics.stdev([0.99, 1.01]))
    assert chosen.y_spread == pytest.approx(statistics.stdev([0.7, 0.74]))
    assert [(group.title, count) for group, count in found.counts] == [("head and prior", 6), ("other", 2)]
    assert found.svg.count('class="front"') == 3
    assert found.svg.count('class="whisker"') == 1
    # The Pareto line of the first search leaves out the start and the fourth model.
    lines = found.svg.split('class="front" points="')[1:]
    assert [len(line.split('"')[0].split()) for line in lines] == [2, 1, 1]


def test_searches_by_other_metrics_have_a_chart_of_their_own(folders, tmp_path):
    folders.append(write_search(tmp_path / "mrr", [(1, 0.5)], 0, kept="dev/mrr"))
    assert [found.kept for found in searched(group_runs(open_runs(folders), {}))] == ["dev/ndcg@20", "dev/mrr"]


def test_the_page_shows_them(folders):
    page = render(Content(title="t", runs=open_runs(folders), labels=LABELS))
    assert "<h2>Searched frontier</h2>" in page and 'href="#searched"' in page
    assert "6 models of head and prior (2 runs), 2 models of other, by dev/ndcg@20 and pairs/accuracy" in page
    assert 'data-value="0.72' in page and "100.0 %" in page


def test_a_page_without_searches_does_not_mention_them(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text('{"step": 1, "train/loss": 1.0}\n')
    page = render(Content(title="t", runs=open_runs([str(folder)])))
    assert "Searched frontier" not in page and "#searched" not in page


def test_a_damaged_file_is_named(folders, tmp_path):
    path = tmp_path / "s1" / "frontier.json"
    path.write_text(path.read_text()[:-30])
    with pytest.raises(StorageError, match=r"frontier\.json is damaged.*task\.runs"):
        searched(group_runs(open_runs(folders), LABELS))
