from __future__ import annotations

import sys
from pathlib import Path

import pytest

from app.admin import AdminError, main, run
from app.errors import Conflict
from app.settings import Settings, get_settings
from tests.app.conftest import make_settings
from tests.databases import both_databases


@both_databases
def test_bootstrap_makes_one_key_and_shows_it_once(settings: Settings) -> None:
    made = run(["bootstrap"], settings)
    assert set(made) == {"project_id", "key_id", "key"}
    assert run(["bootstrap"], settings) == {}
    keys = run(["keys", "list"], settings)
    assert [key["id"] for key in keys] == [made["key_id"]]
    assert keys[0]["scopes"] == ["read", "write", "admin"]
    assert [project["name"] for project in run(["projects", "list"], settings)] == ["default"]


def test_after_the_last_key_is_revoked_bootstrap_makes_another(settings: Settings) -> None:
    made = run(["bootstrap"], settings)
    assert run(["keys", "revoke", made["key_id"]], settings)["revoked_at"]
    assert run(["bootstrap"], settings)["key"] != made["key"]


def test_keys_for_a_project_by_name_or_id(settings: Settings) -> None:
    project = run(["projects", "create", "vision"], settings)
    for name in ("vision", project["id"]):
        key = run(["keys", "create", "--project", name, "--name", "ci"], settings)
        assert key["project_id"] == project["id"]
        assert key["key"].startswith("tsr_")
    only = run(["keys", "create", "--project", "vision", "--scopes", "read"], settings)
    assert only["scopes"] == ["read"]


def test_what_cannot_be_done_is_said(settings: Settings) -> None:
    with pytest.raises(AdminError, match="no project"):
        run(["keys", "create", "--project", "nope"], settings)
    with pytest.raises(AdminError, match="no key"):
        run(["keys", "revoke", "key_nope"], settings)
    with pytest.raises(SystemExit):
        run(["keys", "create", "--scopes", "reed"], settings)
    run(["projects", "create", "x"], settings)
    with pytest.raises(Conflict):
        run(["projects", "create", "x"], settings)


def test_migrate_twice_is_once(tmp_path: Path) -> None:
    settings = make_settings(tmp_path, f"sqlite:///{tmp_path}/new.db", "redis://unused")
    with pytest.raises(AdminError, match="migrate"):
        run(["bootstrap"], settings)
    for _ in range(2):
        assert run(["migrate"], settings) == {"migrated": True}
    assert run(["bootstrap"], settings)["key"]


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("TERSOR_DATABASE_URL", "nonsense", "TERSOR_DATABASE_URL is right"),
        ("TERSOR_DATABASE_URL", "postgresql+nodriver://x", "TERSOR_DATABASE_URL is right"),
        ("TERSOR_DATABASE_URL", "postgresql+psycopg://u:pass@127.0.0.1:1/x", "See that it runs"),
        ("TERSOR_LIMIT_UPLOAD_BYTES", "much", "TERSOR_LIMIT_UPLOAD_BYTES is not valid"),
        ("TERSOR_LOG_FORMAT", "xml", "TERSOR_LOG_FORMAT is not valid"),
    ],
)
def test_a_wrong_setting_is_one_sentence_and_no_stack(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    value: str,
    told: str,
) -> None:
    monkeypatch.setenv("TERSOR_DATA_DIR", str(tmp_path))
    monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["admin", "migrate"])
    get_settings.cache_clear()
    with pytest.raises(SystemExit) as ended:
        main()
    get_settings.cache_clear()
    said = str(ended.value.code)  # Python prints it and exits with status 1
    assert told in said
    assert len(said.splitlines()) == 1
    assert "u:pass" not in said
