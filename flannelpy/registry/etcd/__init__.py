"""What only etcd knows: revisions, lease ids, compare-and-swap, streams. ``registry`` is the door."""
