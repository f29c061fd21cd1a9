"""What does the operator do about a condition where leases are Kubernetes' nodes? Beside the table in ``conditions``, by code."""

from __future__ import annotations

_READYZ = "look at the API server and the way to it: kubectl get --raw /readyz"

REMEDIES = {
    "config-unusable": "kubectl edit the ConfigMap of net-conf.json; flannelpy config check FILE says before whether it is right",
    "config-changed": "write a config that can be: flannelpy config check FILE, then kubectl edit the ConfigMap of net-conf.json",
    "registry-unreachable": f"{_READYZ}; the agent goes on by itself when it answers",
    "registry-tls": "check the kubeconfig or the service account, its certificate authority, and the scheme of --kube-api-url",
    "registry-auth": "kubectl auth can-i list nodes, as the agent's service account; packaging/kubernetes has the role",
    "registry-refused": "the message says what the API server does not like",
    "no-free-subnet": "kubectl get node NAME -o yaml; the controller-manager gives podCIDRs inside its --cluster-cidr",
    "lease-lost": "kubectl get node NAME -o yaml; it is published anew when the node is there again",
    "lease-unconfirmed": _READYZ,
    "subnet-conflict": "give every host a node of its own, by NODE_NAME or its name, with a podCIDR that no other has",
    "duplicate-public-ip": "give each host its own --public-ip or --iface, each node its own public-ip-overwrite",
    "lease-malformed": "kubectl get node NAME -o yaml; restart the agent of that node, which writes its annotations anew",
    "peer-unusable": "flannelpy lease list shows it; mend its options, or kubectl delete node where it is gone",
    "peer-unreadable": "flannelpy lease list shows the lease and its node; restart the agent there",
    "offer-unusable": "kubectl get node NAME -o yaml shows flannelpy-offer; a flannelpy that runs there writes its own",
    "offers-refused": "let the agent's service account list and watch nodes and patch nodes/status, as packaging/kubernetes does",
    "peer-conflict": "flannelpy lease list shows both; kubectl delete node for the wrong one",
    "peer-silent": "let ICMP echo requests in there, or kubectl delete node where the host is gone",
    "registry-reset": "none needed where the other nodes are up; restore the data of Kubernetes' etcd where they are not",
    "view-stale": f"{_READYZ}; the agent corrects itself when it answers",
    "network-overlap": "use a Network that no host, gateway, resolver or API server is in: the cluster CIDR, and net-conf.json",
    "subnet-overlap": "delete the node, so that it gets another podCIDR (kubectl delete node NAME), or move what overlaps",
}
"""Those that are others than in etcd."""
