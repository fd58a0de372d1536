"""The `course` command, and what releases, grades and documents the course."""
