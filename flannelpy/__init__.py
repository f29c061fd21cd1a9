"""flannelpy: an overlay network agent in flannel's shape. The rooms are described in docs/architecture.md."""

__version__ = "0.1.0"
