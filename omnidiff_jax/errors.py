"""Errors meant for the person at the keyboard."""

import functools
import sys


class UserError(Exception):
    """Bad input from outside: one line that says what is wrong, where, and what would be right.

    Commands print the message without a traceback and exit with status 2 (see `cli.py`).
    """

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))


@functools.cache
def notice(text: str) -> None:
    """One line on stderr for what a user should know and nothing stops at, each text once a process; "" is nothing."""
    if text:
        print(text, file=sys.stderr)
