"""What a user of the app can fix."""


class Refused(Exception):
    """One line: what was given, what was expected, what to do."""


class LoadError(Refused):
    """The preprocessing of the manifest cannot be used."""


class DataError(Refused):
    """An image cannot be used."""
