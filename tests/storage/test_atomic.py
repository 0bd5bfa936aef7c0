"""Files that are replaced whole: a writer that fails leaves what was there, and nothing beside it."""

import pytest

from rankpo.storage.atomic import replace_text, replacing


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_text_is_replaced_in_a_folder_that_is_made(tmp_path):
    path = tmp_path / "new" / "a.json"
    replace_text(path, "old")
    replace_text(path, "π")
    assert path.read_bytes() == b"\xcf\x80"
    assert names(path.parent) == ["a.json"]


def test_a_writer_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.json"
    replace_text(path, "old")
    with pytest.raises(OSError, match="no space"), replacing(path) as temporary:
        temporary.write_text("ha")
        assert path.read_text() == "old"
        raise OSError("no space")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.json"]
