"""The lab: hosts, networks and etcd made of network namespaces on one machine, for tests and for trying things out."""
