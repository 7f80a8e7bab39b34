"""Commands for whoever runs the service: `python -m app.admin …`; every answer is JSON."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from app import storage_gc
from app.audit.repository import record
from app.auth import repository
from app.auth.tables import ApiKey
from app.backup import BackupError, back_up, restore
from app.db import Database, is_schema_current, migrate, utc_now
from app.errors import ServiceError
from app.projects.repository import create_project, find_project, list_projects
from app.projects.tables import Project
from app.settings import InvalidSettings, Settings, get_settings
from app.storage import BlobStore, open_store

_ALL = 1_000_000


class AdminError(Exception):
    """Something the operator must put right."""


def run(arguments: Sequence[str], settings: Settings) -> Any:
    """Do what the arguments say and return the answer as plain JSON types."""
    options = _parser().parse_args(arguments)
    if options.command == "migrate":
        migrate(settings)
        return {"migrated": True}
    if options.command == "restore":
        return restore(settings, options.folder)
    database = Database(settings)
    try:
        if not is_schema_current(database.engine):
            raise AdminError("The database has another schema: run `python -m app.admin migrate`.")
        if options.command == "bootstrap":
            return _bootstrap(database)
        if options.command == "backup":
            return back_up(settings, options.folder)
        if options.command == "gc":
            return _collect_garbage(database, open_store(settings.storage_url), options.delete)
        if options.command == "projects":
            return _projects(database, options)
        return _keys(database, options)
    finally:
        database.close()


def main() -> None:
    """Run one command; exit 1 with a sentence on stderr if it cannot be done."""
    try:
        answer = run(sys.argv[1:], get_settings())
    except (AdminError, BackupError, InvalidSettings, ServiceError) as error:
        sys.exit(str(error))
    except (SQLAlchemyError, ModuleNotFoundError) as error:
        reason = str(error).partition("\n")[0]
        sys.exit(
            f"The database cannot be used: {reason}. See that it runs and that "
            "TERSOR_DATABASE_URL is right: postgresql+psycopg://user@host/name, or none for SQLite."
        )
    sys.stdout.write(json.dumps(answer) + "\n")


def _bootstrap(database: Database) -> dict[str, Any]:
    with database.write() as session:
        project = find_project(session, "default")
        if project is None:
            project = create_project(session, "default")
        if repository.count_live_keys(session) > 0:
            return {}
        key, token = repository.create_key(session, project.id, "first", repository.SCOPES)
        return {"project_id": project.id, "key_id": key.id, "key": token}


def _projects(database: Database, options: argparse.Namespace) -> Any:
    if options.action == "create":
        with database.write() as session:
            project = create_project(session, options.name)
            record(session, "project.create", project.id, project.id, name=project.name)
            return _show_project(project)
    with database.read() as session:
        return [_show_project(project) for project in list_projects(session, _ALL)]


def _keys(database: Database, options: argparse.Namespace) -> Any:
    if options.action == "create":
        with database.write() as session:
            project = find_project(session, options.project)
            if project is None:
                raise AdminError(f"There is no project {options.project!r}.")
            key, token = repository.create_key(session, project.id, options.name, options.scopes)
            record(
                session, "key.create", project.id, key.id, name=key.name, scopes=key.scopes
            )  # fmt: skip
            return {**_show_key(key), "key": token}
    if options.action == "list":
        with database.read() as session:
            return [_show_key(key) for key in repository.list_keys(session, None, _ALL)]
    with database.write() as session:
        found = session.get(ApiKey, options.id)
        if found is None:
            raise AdminError(f"There is no key {options.id!r}.")
        if found.revoked_at is None:
            found.revoked_at = utc_now()
            record(session, "key.revoke", found.project_id, found.id)
        return _show_key(found)


def _collect_garbage(database: Database, store: BlobStore, delete: bool) -> dict[str, Any]:
    report = storage_gc.look(database, store)
    if delete:
        storage_gc.remove(database, store, report.garbage)
    return {
        "deleted": delete,
        "bytes": report.garbage_bytes,
        "garbage": [file.key for file in report.garbage],
        "missing": list(report.missing),
    }


def _show_project(project: Project) -> dict[str, Any]:
    return {"id": project.id, "name": project.name, "created_at": project.created_at.isoformat()}


def _show_key(key: ApiKey) -> dict[str, Any]:
    return {
        "id": key.id,
        "project_id": key.project_id,
        "name": key.name,
        "prefix": key.prefix,
        "scopes": key.scopes,
        "created_at": key.created_at.isoformat(),
        "expires_at": key.expires_at.isoformat() if key.expires_at else None,
        "revoked_at": key.revoked_at.isoformat() if key.revoked_at else None,
    }


def _read_scopes(text: str) -> list[str]:
    scopes = text.split(",")
    unknown = set(scopes) - set(repository.SCOPES)
    if unknown:
        raise argparse.ArgumentTypeError(f"no such scope: {', '.join(sorted(unknown))}")
    return scopes


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m app.admin", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("migrate", help="bring the database to the newest schema")
    commands.add_parser("bootstrap", help="make the first project and key, if there is none")

    collect = commands.add_parser("gc", help="list files that belong to nothing; deletes nothing")
    collect.add_argument("--delete", action="store_true", help="delete them")
    for name, what in (
        ("backup", "write database and files into an empty folder; the service may run"),
        ("restore", "put a backup into an empty service"),
    ):
        commands.add_parser(name, help=what).add_argument("folder", type=Path)

    projects = commands.add_parser("projects").add_subparsers(dest="action", required=True)
    projects.add_parser("create").add_argument("name")
    projects.add_parser("list")

    keys = commands.add_parser("keys").add_subparsers(dest="action", required=True)
    create = keys.add_parser("create", help="the answer is the only place that shows the key")
    create.add_argument("--project", default="default", help="id or name")
    create.add_argument("--name", default="key")
    create.add_argument(
        "--scopes",
        type=_read_scopes,
        default=list(repository.SCOPES),
        help="comma-separated: read,write,admin",
    )
    keys.add_parser("list")
    keys.add_parser("revoke").add_argument("id")
    return parser


if __name__ == "__main__":
    main()
