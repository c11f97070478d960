"""The matrix of `docs/compatibility.md`: exported files in runtimes of others, each in an environment of its own, held against their golden pairs."""
