"""Errors meant for the person at the keyboard."""


class UserError(Exception):
    """Bad input from outside: one line that says what is wrong, where, and what would be right.

    Commands print the message without a traceback and exit with status 2 (see `cli.py`).
    """

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))
