"""Projects: owners of everything else, with their limits."""
