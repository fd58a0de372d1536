"""Checks of the homework: `check("hw02.grad_cam", grad_cam)`."""

from course_utils.homework.checks import Wrong, check

__all__ = ["Wrong", "check"]
