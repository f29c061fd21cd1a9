"""What can go wrong, as exceptions. The tree and nothing else.

A message is one line: what, where, what was expected; whoever catches it adds what happens now.
"""


class FlannelpyError(Exception):
    """Base of all errors this project raises on purpose; its text can be shown to a person as it is."""


class UsageError(FlannelpyError):
    """A flag, an environment variable or an argument is wrong: exit 2."""


class ConfigError(FlannelpyError):
    """The network config cannot be used; waited for until it is mended."""


class LackingError(ConfigError):
    """The config is right, and this host lacks what it takes, for now: it is tried again."""


class MalformedError(FlannelpyError):
    """A key or value written by somebody (another node, a person) cannot be read; it is skipped and reported once."""


class NoUplinkError(FlannelpyError):
    """No interface fits; the text lists what was looked at and why each fell out."""


class BackendError(FlannelpyError):
    """A backend cannot do what the config asks for."""


class RegistryError(FlannelpyError):
    """Base of what the registry can answer but success.

    ``undecided``: a write that failed so may have been carried out all the same, or may be yet.
    """

    undecided = False


class RegistryUnavailableError(RegistryError):
    """No answer within the deadline, or none at all: refused, unreachable, no leader. Try again."""


class RegistryTlsError(RegistryError):
    """The TLS handshake failed, or TLS was expected and not spoken. Try again, but a person has to act."""


class RegistryAuthError(RegistryError):
    """User name, password or role refused. Try again, but a person has to act."""


class RegistryRefusedError(RegistryError):
    """etcd answers, and refuses: out of space, corrupt, a learner. Nothing was written. Try again, but a person has to act."""


class TakenError(RegistryError):
    """create: somebody holds this key already."""


class ConflictError(RegistryError):
    """renew/release: the key is no longer as we left it (changed or deleted by somebody); nothing was written."""


class WatchGapError(RegistryError):
    """The watch cannot go on from where it was (compaction, stall): list again."""


class KernelError(FlannelpyError):
    """The kernel refused; ``code`` is the positive errno (errno(3)), 0 where there is none."""

    def __init__(self, text: str, code: int = 0) -> None:
        super().__init__(text)
        self.code = code
