"""The error of both commands."""


class TrainError(Exception):
    """The models or the texts cannot be used. The message is one line."""
