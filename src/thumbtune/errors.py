"""One base error and a few children, by what the reader can do about them.

Each child is also a standard-library error, so that `except ValueError` keeps working.
A message says what, where, and what to do.
"""


class ThumbtuneError(Exception):
    """Anything that thumbtune refuses. The command line prints it without a traceback and exits with 2."""


class ConfigError(ThumbtuneError, ValueError):
    """A setting, an option or a combination of them cannot hold: change the setting."""


class DataError(ThumbtuneError, ValueError):
    """A file or a row cannot be used: mend the data."""


class ModelError(ThumbtuneError, ValueError):
    """A model or a tokenizer cannot be loaded or used: name another one."""


class CheckpointError(ThumbtuneError, RuntimeError):
    """A run folder or a checkpoint cannot be written, read or continued."""


class TrainingError(ThumbtuneError, RuntimeError):
    """Training stopped because going on would do harm, such as on a loss that is not a number."""


class StoreError(ThumbtuneError, OSError):
    """The store cannot be opened, read or written: the message says whether disk, server or address is to blame."""
