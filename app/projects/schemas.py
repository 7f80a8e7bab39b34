"""Bodies of projects."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StrictInt

from app.fields import Name
from app.projects.tables import Project

_STRICT = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class ProjectLimits(BaseModel):
    """What a project may use; null does not bind."""

    model_config = _STRICT

    stored_bytes: Annotated[StrictInt, Field(ge=0, lt=2**63)] | None = None
    """Of models, datasets, artifacts and unfinished uploads together."""
    unfinished_jobs: Annotated[StrictInt, Field(ge=0, lt=2**31)] | None = None
    """Queued and running; preflights are counted for themselves."""
    requests_per_s: Annotated[StrictInt, Field(ge=1, le=1_000_000)] | None = None

    def to_columns(self) -> dict[str, Any]:
        """Return the limits that were given, by the names of their columns."""
        given = self.model_dump(exclude_unset=True)
        return {f"{name}_max": value for name, value in given.items()}


class ProjectChange(BaseModel):
    """What to change of a project; what is not named stays."""

    model_config = _STRICT

    limits: ProjectLimits = ProjectLimits()
    """Only those named change; null takes one away."""
    expires_after_s: Annotated[StrictInt, Field(ge=3600, lt=2**31)] | None = None
    """Finished jobs, and models and datasets that no job uses, are removed at that age."""

    def to_columns(self) -> dict[str, Any]:
        """Return what was given, by the names of columns."""
        columns = self.limits.to_columns()
        if "expires_after_s" in self.model_fields_set:
            columns["expires_after_s"] = self.expires_after_s
        return columns


class ProjectCreate(ProjectChange):
    """A new project."""

    name: Name


class ProjectUsage(BaseModel):
    """What a project uses now."""

    stored_bytes: int
    unfinished_jobs: int


class ProjectView(BaseModel):
    """Owner of models, datasets and jobs."""

    id: str
    name: str
    created_at: datetime
    limits: ProjectLimits
    expires_after_s: int | None


class ProjectDetails(ProjectView):
    """A project, and what it uses."""

    usage: ProjectUsage


def show_project(project: Project) -> ProjectView:
    """Return the project as the API shows it."""
    limits = {name: getattr(project, f"{name}_max") for name in ProjectLimits.model_fields}
    return ProjectView(
        id=project.id,
        name=project.name,
        created_at=project.created_at,
        limits=ProjectLimits(**limits),
        expires_after_s=project.expires_after_s,
    )
