"""`python3 -m course_utils`: the set-up on first use, then the `course` command."""

from course_utils.tools.bootstrap import main

main()
