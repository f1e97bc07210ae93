"""Fuzzing of every reader of files: ``python -m fuzz --help``; what was found is in ``docs/fuzzing.md``."""
