"""The `tersor` command."""

from __future__ import annotations

from tersor.cli.commands import app


def main() -> None:
    """Run the command line."""
    app()
