"""Checks of the homework: `check("hw02.grad_cam", grad_cam)`."""

from course_utils.homework.checks import check
from course_utils.homework.guard import Wrong

__all__ = ["Wrong", "check"]
