"""extension: commands of the operator's carry the packets; the agent says when which peer comes and goes. flannel-compat 9.6."""

from backends.extension.backend import Extension

__all__ = ["Extension"]
