"""What every command shares: the options, the client, the output and the exit status.

Exit status: 0 done; 1 the job failed or was cancelled, or `up` could not start; 2 wrong usage;
3 the service refused; 4 it cannot be reached; 130 interrupted.
"""

from __future__ import annotations

import functools
import inspect
import json as json_module
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, TypeVar

import typer

from tersor.client import Client
from tersor.errors import (
    ApiError,
    ConfigurationError,
    DigestMismatch,
    FileChanged,
    TersorError,
    TransportError,
    Unauthorized,
)

JOB_FAILED, USAGE, REFUSED, UNREACHABLE, INTERRUPTED = 1, 2, 3, 4, 130

_Command = TypeVar("_Command", bound=Callable[..., None])
Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else.")]
Url = Annotated[
    str | None,
    typer.Option(
        "--url", help="Address of the service; else TERSOR_URL, else the last `tersor up`."
    ),
]
ApiKey = Annotated[
    str | None,
    typer.Option("--api-key", help="Key; else TERSOR_API_KEY, else the one `tersor up` wrote."),
]
_SHARED: dict[str, tuple[Any, Any]] = {
    "json": (Json, False),
    "url": (Url, None),
    "api_key": (ApiKey, None),
}


@dataclass
class Session:
    """One run of a command."""

    json: bool = False
    url: str | None = None
    api_key: str | None = None

    @cached_property
    def client(self) -> Client:
        """The client, made on first use."""
        return Client(self.url, self.api_key)

    @property
    def live(self) -> bool:
        """Whether somebody watches: progress may be drawn on standard error."""
        return sys.stderr.isatty() and not self.json

    def say(self, line: str) -> None:
        """Print a line for people; with --json, to standard error."""
        typer.echo(line, err=self.json)

    def show_json(self, data: Any) -> None:
        """Print JSON to standard output."""
        typer.echo(json_module.dumps(data, indent=2, default=dict))

    def show(self, data: Any, render: Callable[[], None]) -> None:
        """Print JSON if it was asked for, else what `render` prints."""
        if self.json:
            self.show_json(data)
        else:
            render()

    def show_table(
        self,
        data: Sequence[Mapping[str, Any]],
        columns: Sequence[str],
        rows: Sequence[Sequence[str]],
    ) -> None:
        """Print a list: JSON `data`, or `rows` under `columns`."""
        if self.json:
            self.show_json(data)
        else:
            print_table(columns, rows)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print aligned columns, the same on a terminal and in a pipe; never cut off."""
    lines = [[name.upper() for name in columns], *rows]
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
    for number, line in enumerate(lines):
        text = "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        typer.secho(text.rstrip(), bold=number == 0)


def command(
    app: typer.Typer, name: str | None = None, *, remote: bool = True
) -> Callable[[_Command], _Command]:
    """Register a function as a command; its first parameter, a Session, becomes the options.

    Errors of the client become one line on standard error and an exit status. One that speaks to
    no service (`remote=False`) takes neither address nor key.
    """

    def register(function: _Command) -> _Command:
        @functools.wraps(function)
        def run(
            *,
            context: typer.Context,
            json: bool,
            url: str | None = None,
            api_key: str | None = None,
            **arguments: Any,
        ) -> None:
            before = context.find_object(Session) or Session()  # options given before the command
            session = Session(
                json=json or before.json,
                url=url or before.url,
                api_key=api_key or before.api_key,
            )
            try:
                function(session, **arguments)
            except TersorError as error:
                raise typer.Exit(report(error)) from error
            except KeyboardInterrupt as error:
                raise typer.Exit(INTERRUPTED) from error

        signature = inspect.signature(function, eval_str=True)
        own = [
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for parameter in list(signature.parameters.values())[1:]
        ]
        shared = [
            inspect.Parameter(
                option, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default
            )
            for option, (annotation, default) in _SHARED.items()
            if remote or option == "json"
        ]
        own.append(
            inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
        )
        run.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[*own, *shared], return_annotation=None
        )
        run.__annotations__ = {each.name: each.annotation for each in [*own, *shared]}
        app.command(name)(run)
        return function

    return register


def report(error: TersorError) -> int:
    """Print `code: message`, and a hint where there is one; return the exit status."""
    typer.secho(str(error).replace("\n", " "), err=True, fg="red")
    hint = _hint(error)
    if hint:
        typer.echo(f"  {hint}", err=True)
    if isinstance(error, TransportError):
        return UNREACHABLE
    if isinstance(error, ConfigurationError | FileChanged):
        return USAGE
    return REFUSED


def _hint(error: TersorError) -> str | None:
    if isinstance(error, Unauthorized):
        return (
            "Give a key: --api-key, TERSOR_API_KEY, or TERSOR_DATA_DIR with `tersor up`'s folder."
        )
    if error.code == "webhook_secret_missing":
        return "`tersor webhooks secret` makes one."
    if isinstance(error, DigestMismatch):
        return "Something between here and the service changes or cuts what is sent."
    if isinstance(error, ApiError) and error.status >= 500 and error.request_id:
        return f"The service's log has more under the request id {error.request_id}."
    return None
