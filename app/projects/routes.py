"""Projects: make, list, look, change."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from app.audit.repository import record
from app.auth.principal import Admin, Reader
from app.errors import NotFound
from app.fields import is_id
from app.idempotency.answers import IdempotencyKey, answer_once, keep_answer
from app.problems import BODY, GUARDED, INVALID, document
from app.projects import repository
from app.projects.schemas import (
    ProjectChange,
    ProjectCreate,
    ProjectDetails,
    ProjectUsage,
    ProjectView,
    show_project,
)
from app.projects.tables import Project
from app.responses import NOT_MODIFIED, Page, PageQuery, json_answer, take_page
from app.state import services

router = APIRouter(prefix="/v1/projects", tags=["keys"])

_ONE = GUARDED | INVALID | {404: ["not_found"]}


@router.post(
    "",
    status_code=201,
    response_model=ProjectView,
    responses=document(BODY | GUARDED | INVALID | {409: ["name_taken", "idempotency_conflict"]}),
)
def create_project(
    request: Request, principal: Admin, body: ProjectCreate, key: IdempotencyKey = None
) -> Response:
    """Make a project; needs the scope `admin`."""
    database = services(request).database
    columns = body.to_columns()

    def make() -> Project:
        with database.write() as session:
            project = repository.create_project(session, body.name, columns)
            record(session, "project.create", project.id, project.id, name=body.name, **columns)
            keep_answer(session, project)
            return project

    return answer_once(
        database,
        principal.project_id,
        key,
        [request.url.path, body.model_dump(mode="json")],
        make,
        show=lambda _session, project: json_answer(request, show_project(project), status=201),
    )


@router.get(
    "", response_model=Page[ProjectView], responses=document(GUARDED | INVALID) | NOT_MODIFIED
)
def list_projects(
    request: Request, _principal: Admin, query: Annotated[PageQuery, Query()]
) -> Response:
    """List all projects, newest first; needs the scope `admin`."""
    with services(request).database.read() as session:
        projects = repository.list_projects(session, query.limit + 1, query.after)
    return json_answer(request, take_page([show_project(each) for each in projects], query.limit))


@router.get("/{project_id}", response_model=ProjectDetails, responses=document(_ONE) | NOT_MODIFIED)
def get_project(request: Request, principal: Reader, project_id: str) -> Response:
    """Look at your project, its limits and what it uses; an admin may look at any."""
    with services(request).database.read() as session:
        project = session.get(Project, project_id) if is_id(project_id, "prj") else None
        if project is None or not principal.may_manage(project.id):
            raise NotFound("There is no such project.")
        usage = ProjectUsage(
            stored_bytes=repository.count_stored_bytes(session, project.id)
            + repository.count_arriving_bytes(session, project.id),
            unfinished_jobs=repository.count_unfinished_jobs(session, project.id),
        )
    view = ProjectDetails(**show_project(project).model_dump(), usage=usage)
    return json_answer(request, view)


@router.patch("/{project_id}", response_model=ProjectView, responses=document(BODY | _ONE))
def change_project(
    request: Request, _principal: Admin, project_id: str, body: ProjectChange
) -> Response:
    """Change a project's limits, or how long it keeps things; needs the scope `admin`."""
    columns = body.to_columns()
    with services(request).database.write() as session:
        project = repository.lock_project(session, project_id) if is_id(project_id, "prj") else None
        if project is None:
            raise NotFound("There is no such project.")
        for name, value in columns.items():
            setattr(project, name, value)
        record(session, "project.change", project.id, project.id, **columns)
    return json_answer(request, show_project(project))
