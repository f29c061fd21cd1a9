"""By what is a cluster reached, and was that written anew since? A kubeconfig, or what a pod is given, and files named in it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import yaml
from lightkube import KubeConfig
from lightkube.config.models import User
from lightkube.core.exceptions import ConfigError

from flannelpy.core.errors import UsageError
from flannelpy.core.foreign import printable
from flannelpy.host.files import read_given
from flannelpy.registry.kube.access import Access


def written(access: Access, config: Any) -> tuple[bytes | None, ...]:
    """What stands in the files that ``config`` was read from and names, but for the token, which lightkube reads anew by itself."""
    named = (config.cluster.certificate_auth, *((config.user.client_cert, config.user.client_key) if config.user else ()))
    files = [Path(access.kubeconfig).expanduser()] if access.kubeconfig else []
    with suppress(ConfigError):  # relative, and to what?
        files += [Path(config.abs_file(each)) for each in named if each]
    return tuple(map(_content, files))


def _content(file: Path) -> bytes | None:
    try:
        return read_given(file)
    except OSError:
        return None


def configured(access: Access) -> Any:
    """The configuration that access leads to, with a user, whom lightkube expects. Raises UsageError."""
    try:
        if access.kubeconfig:
            found = KubeConfig.from_file(access.kubeconfig).get()
        elif access.api_url:
            found = KubeConfig.from_server(access.api_url).get()
        else:
            found = KubeConfig.from_service_account().get()
    except (ConfigError, KeyError, TypeError, AttributeError, OSError, ValueError, msgspec.MsgspecError, yaml.YAMLError) as error:
        where = f"--kubeconfig-file {access.kubeconfig!r}" if access.kubeconfig else "--kube-subnet-mgr without --kubeconfig-file"
        said = f"{error} is not there" if isinstance(error, KeyError) else str(error).splitlines()[0]
        raise UsageError(f"{where}: {printable(said)}; expected a kubeconfig, or a pod's service account") from None
    if found is None:
        raise UsageError(f"--kubeconfig-file {access.kubeconfig!r}: no current context; expected one")
    if access.api_url:
        found.cluster.server = access.api_url
    return found._replace(user=found.user or User())
