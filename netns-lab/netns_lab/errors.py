"""What can go wrong in the lab, as exceptions: the text is one line that a person can be shown as it is."""


class LabError(Exception):
    """The lab could not do what was asked."""


class TopologyError(LabError):
    """A topology cannot be built: which file or key, what it holds, what was expected."""


class TimedOutError(LabError):
    """A fact that was waited for did not come within its bound; the text says what was seen last."""
