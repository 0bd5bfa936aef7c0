"""A run composes its config once, and what a config says of its own mode still counts."""

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl

from tests.cli.test_launch import stopped
from tests.runs import RANKPO


@pytest.fixture
def launched(monkeypatch, capsys, tmp_path):
    """Runs launch.py. Gives its exit code, its lines, and the overrides of each composition."""
    composed, load = [], ConfigLoaderImpl._load_configuration_impl

    def counted(self, config_name, overrides, *rest, **named):
        composed.append(list(overrides))
        return load(self, config_name, overrides, *rest, **named)

    monkeypatch.setattr(ConfigLoaderImpl, "_load_configuration_impl", counted)

    def launch(*options):
        options = (*options, "loss.temperature=0", f"cache_dir={tmp_path / 'cache'}")
        return *stopped(monkeypatch, capsys, *options), composed

    return launch


def folder_with(tmp_path, mode):
    folder = tmp_path / "conf" / "experiment"
    folder.mkdir(parents=True)
    (folder / "other.yaml").write_text(f"# @package _global_\nhydra:\n  mode: {mode}\n")
    return f"--config-dir={folder.parent}", "experiment=other"


def test_a_run_composes_once(launched):
    code, lines, composed = launched(*RANKPO)
    assert code == 2 and "temperature" in lines[0]
    assert len(composed) == 1


def test_a_config_that_cannot_be_composed_is_composed_once(launched):
    code, lines, composed = launched(*RANKPO, "loss=nothing")
    assert code == 2 and "nothing" in lines[0]
    assert len(composed) == 1


def test_a_mode_in_a_file_counts(launched, tmp_path):
    code, _, composed = launched(*folder_with(tmp_path, "MULTIRUN"), *RANKPO)
    assert code == 2
    assert len(composed) == 4  # to read the mode, for the sweep, and twice for its one job


def test_a_run_may_say_that_it_is_one(launched, tmp_path):
    code, _, composed = launched(*folder_with(tmp_path, "RUN"), *RANKPO)
    assert code == 2 and len(composed) == 1


def test_values_of_a_sweep_need_its_flag(launched):
    code, lines, _ = launched(*RANKPO, "loss.beta=1,2")
    assert code == 2 and "-m" in lines[0]
