"""Does Kubernetes' API server answer, and let us do what the agent does: list and watch nodes, write into our node's status?"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

from flannelpy.commands.doctor.about import About
from flannelpy.core.errors import RegistryAuthError, RegistryError, RegistryUnavailableError, UsageError
from flannelpy.explain.doctor import FAILED, OK, SKIPPED, WARNING, Finding
from flannelpy.registry.kube.access import EXTRA
from flannelpy.registry.kube.names import Names

RIGHTS = (("list", ""), ("get", ""), ("watch", ""), ("patch", "status"))
"""What the agent does with nodes: verb, subresource. The first is tried, of the others it is asked."""


async def kube(about: About) -> AsyncIterator[Finding]:
    """The server, our rights, our node. Raises RegistryError."""
    access = about.settings.kube
    assert access is not None
    try:
        from flannelpy.registry.kube.client import ApiServer

        api = ApiServer(access, Names.under(access.prefix))
    except ModuleNotFoundError as error:
        yield Finding("Kubernetes", SKIPPED, f"{error.name} is missing here", EXTRA)
        return
    except UsageError as error:
        yield Finding("Kubernetes", SKIPPED, str(error), "run it in the agent's pod, or give --kubeconfig-file or --kube-api-url")
        return
    name = f"Kubernetes {api.url}"
    try:
        began = time.monotonic()
        try:
            nodes, _version = await api.nodes()
        except RegistryUnavailableError as error:
            yield Finding(f"{name}: connection", FAILED, str(error), "is the API server up there? kubectl get --raw /readyz")
            return
        except RegistryAuthError as error:
            yield Finding(
                f"{name}: list nodes", FAILED, str(error), "kubectl auth can-i list nodes; packaging/kubernetes has the role"
            )
        except RegistryError as error:
            yield Finding(f"{name}: list nodes", FAILED, str(error), "look at the API server and its certificates")
            return
        else:
            took_ms = (time.monotonic() - began) * 1000
            yield Finding(f"{name}: list nodes", OK, f"{len(nodes):,} nodes in {took_ms:.0f} ms")
        for verb, part in RIGHTS[1:]:
            what = "nodes/status" if part else "nodes"
            try:
                may = await api.may(verb, part)
            except RegistryError as error:
                yield Finding(f"{name}: {verb} {what}", SKIPPED, f"it does not say whether we may: {error}")
                continue
            remedy = "" if may else f"kubectl auth can-i {verb} {what}; packaging/kubernetes has the role"
            yield Finding(f"{name}: {verb} {what}", OK if may else FAILED, "allowed" if may else "not allowed", remedy)
        if access.node:
            try:
                node = await api.node(access.node)
            except RegistryError as error:
                yield Finding(f"node {access.node}", SKIPPED, f"it may not be read: {error}")
                return
            said = "there is none of that name" if node is None else ", ".join(node.pod_cidrs) or "it has no podCIDR yet"
            fine = node is not None and bool(node.pod_cidrs)
            remedy = "" if fine else "kubectl get nodes; NODE_NAME says which is ours, the controller-manager gives podCIDRs"
            yield Finding(f"node {access.node}", OK if fine else WARNING, said, remedy)
    finally:
        await api.close()
