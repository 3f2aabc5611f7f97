"""The one error that a user causes and a user can mend, and how its line shows what it names."""


class UserError(Exception):
    """One line that names the file and key and says what is allowed; the command line prints it and exits with 2."""


def one_line(error: BaseException) -> str:
    """Return the type and the message of an error on one line, cut to 200 characters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def shown(key) -> str:
    """Return a key as an error shows it: on one line, and not the whole of a long one."""
    text = str(key)
    return text if text.isprintable() and len(text) <= 80 else f"{text!r:.80}"
