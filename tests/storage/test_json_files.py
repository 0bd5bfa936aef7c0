"""JSON files with a checksum: what is written is read back; a file that was cut or changed is never believed."""

import json
import os
import stat

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from rankpo.errors import StorageError
from rankpo.storage.atomic import replacing
from rankpo.storage.folders import damage, written_whole
from rankpo.storage.json_files import dumps, read_cache, read_json, write_json

VALUES = {"a": 1.5, "b": ["x", None, True], "c": {"d": "é\ud800"}}


def test_values_come_back_without_the_checksum(tmp_path):
    write_json(tmp_path / "file.json", VALUES)
    assert read_json(tmp_path / "file.json") == VALUES
    assert list(json.loads((tmp_path / "file.json").read_text())) == ["a", "b", "c", "checksum"]


def test_files_of_earlier_versions_have_no_checksum(tmp_path):
    (tmp_path / "file.json").write_text('{"a": 1}')
    assert read_json(tmp_path / "file.json") == {"a": 1}


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_no_cut_or_changed_file_is_believed(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("fuzz") / "file.json"
    whole = dumps(VALUES).encode()
    if data.draw(st.booleans()):
        changed = whole[: data.draw(st.integers(0, len(whole) - 3))]
    else:
        place = data.draw(st.integers(0, len(whole) - 1))
        changed = whole[:place] + bytes([data.draw(st.integers(0, 255))]) + whole[place + 1 :]
    path.write_bytes(changed)
    try:
        found = read_json(path)  # white space moved, the same letter written again, or another name for the checksum
        assert {name: found[name] for name in VALUES} == VALUES
    except StorageError as error:
        assert str(path) in str(error) and "\n" not in str(error)


@pytest.mark.parametrize("content", ["", "[]", "null", "7", '"text"', "[" * 100_000, "{", "\x00"])
def test_other_contents_are_refused_in_one_line(tmp_path, content):
    path = tmp_path / "file.json"
    path.write_text(content)
    with pytest.raises(StorageError, match=r"file\.json is damaged .*; do this$"):
        read_json(path, "do this")
    said = []
    assert read_cache(path, said.append) is None and len(said) == 1
    assert read_cache(tmp_path / "none.json", said.append) is None and len(said) == 1


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_the_umask_decides_who_may_read(tmp_path, umask):
    before = os.umask(umask)
    try:
        with replacing(tmp_path / "one.safetensors") as temporary:
            save_file({"x": np.zeros(2)}, temporary)
        with written_whole(tmp_path / "folder") as folder:
            save_file({"x": np.zeros(2)}, folder / "two.safetensors")
    finally:
        os.umask(before)
    for path in (tmp_path / "one.safetensors", tmp_path / "folder" / "two.safetensors"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask, path


@pytest.mark.parametrize("content", ["[]", "null", '{"f": 5}', "{}", "7", '{"f": [1]}', ""])
def test_a_manifest_that_is_no_list_of_files_is_damage(tmp_path, content):
    with written_whole(tmp_path / "folder") as folder:
        (folder / "f").write_text("x")
    assert damage(tmp_path / "folder") is None
    (tmp_path / "folder" / "manifest.json").write_text(content)
    assert damage(tmp_path / "folder") == "manifest.json is not a list of files"
