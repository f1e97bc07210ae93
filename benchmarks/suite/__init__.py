"""The task suite: every model and baseline on T1-T7, one command, tables and figures written by it."""
