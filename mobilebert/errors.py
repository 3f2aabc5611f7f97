"""The one error that a user causes and a user can mend."""


class UserError(Exception):
    """One line that names the file and key and says what is allowed; the command line prints it and exits with 2."""
