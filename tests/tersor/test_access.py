"""Which service and key are found, and to whom a key is never sent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tersor.access import DEFAULT_URL, find_access
from tersor.errors import ConfigurationError


def started(folder: Path, url: str, key: str = "tsr_file") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "credentials.json").write_text(json.dumps({"url": url, "key": key}))


def recorded(tmp_path: Path, url: str, folder: Path) -> None:
    state = tmp_path / "state" / "tersor"
    state.mkdir(parents=True)
    (state / "server.json").write_text(json.dumps({"url": url, "data_dir": str(folder)}))


def test_without_anything_it_is_port_8080_of_this_machine() -> None:
    assert find_access().url == DEFAULT_URL
    assert find_access().api_key is None


def test_the_environment_names_address_and_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERSOR_URL", "https://tersor.example/")
    monkeypatch.setenv("TERSOR_API_KEY", "tsr_env")
    found = find_access()
    assert (found.url, found.api_key) == ("https://tersor.example", "tsr_env")
    assert find_access("http://other:1", "tsr_arg").api_key == "tsr_arg"


def test_the_last_server_started_is_found_from_any_folder(tmp_path: Path) -> None:
    started(tmp_path / "elsewhere", "http://127.0.0.1:4444")
    recorded(tmp_path, "http://127.0.0.1:4444", tmp_path / "elsewhere")
    found = find_access()
    assert (found.url, found.api_key) == ("http://127.0.0.1:4444", "tsr_file")


def test_the_data_folder_here_is_found_without_a_record(tmp_path: Path) -> None:
    started(tmp_path / "tersor-data", "http://127.0.0.1:5555")
    assert find_access().url == "http://127.0.0.1:5555"
    assert find_access().api_key == "tsr_file"


def test_a_data_folder_named_on_purpose_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started(tmp_path / "a", "http://127.0.0.1:1111", "tsr_a")
    started(tmp_path / "b", "http://127.0.0.1:2222", "tsr_b")
    recorded(tmp_path, "http://127.0.0.1:1111", tmp_path / "a")
    monkeypatch.setenv("TERSOR_DATA_DIR", str(tmp_path / "b"))
    assert find_access().api_key == "tsr_b"


def test_a_key_file_is_not_used_for_another_server(tmp_path: Path) -> None:
    started(tmp_path / "tersor-data", "http://127.0.0.1:5555")
    assert find_access("http://elsewhere.example").api_key is None


def test_a_key_is_not_in_the_text_of_what_was_found() -> None:
    assert "tsr_secret" not in repr(find_access("http://a", "tsr_secret"))


def test_a_damaged_key_file_is_as_good_as_none(tmp_path: Path) -> None:
    (tmp_path / "tersor-data").mkdir()
    (tmp_path / "tersor-data" / "credentials.json").write_text("{")
    assert find_access().api_key is None


@pytest.mark.parametrize("url", ["ftp://a", "127.0.0.1:8080", "http://", "http://a:port"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="no address"):
        find_access(url)


def test_a_key_with_a_line_end_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="key"):
        find_access("http://a", "tsr_x\n")
