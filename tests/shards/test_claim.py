"""The command that mends a directory."""

import pytest

from shards.claim import COMMAND_NAME, STATE, build_command


@pytest.mark.parametrize("spelled", ["--out old", "--out=old"])
def test_a_moved_directory_is_mended_where_it_lies(tmp_path, spelled):
    directory = tmp_path / "new place"
    (directory / STATE).mkdir(parents=True)
    recorded = f"python -m shards build captions a.csv {spelled} --size 8"
    (directory / STATE / COMMAND_NAME).write_text(recorded)
    command = build_command(directory)
    assert f"{tmp_path}/new place" in command and "old" not in command.replace(str(tmp_path), "")
    assert command.startswith("python -m shards build captions a.csv") and "--size 8" in command


def test_a_converted_directory_is_mended_by_convert(tmp_path):
    (tmp_path / STATE).mkdir()
    recorded = "python -m shards convert 'old one' before"
    (tmp_path / STATE / COMMAND_NAME).write_text(recorded)
    assert build_command(tmp_path) == f"python -m shards convert 'old one' {tmp_path}"
