"""What is steered? The parts that run for one network on this host, by name."""

from __future__ import annotations

from dataclasses import dataclass

from flannelpy.agent.beside import Retirement
from flannelpy.agent.cluster import Cluster
from flannelpy.agent.datapath import DatapathSupervisor
from flannelpy.agent.facts import Facts
from flannelpy.agent.forwarding import Forwarding
from flannelpy.agent.migration import Migration
from flannelpy.agent.offers import Offers
from flannelpy.agent.preparation import Preparation
from flannelpy.agent.probes import Probes
from flannelpy.agent.publish import Publisher
from flannelpy.agent.surroundings import Surroundings
from flannelpy.agent.sync.reconcile import Reconciler


@dataclass(frozen=True, slots=True)
class Parts:
    """Made once for as long as the process lives."""

    facts: Facts
    surroundings: Surroundings
    cluster: Cluster
    reconciler: Reconciler
    datapath: DatapathSupervisor
    publisher: Publisher
    retirement: Retirement
    migration: Migration
    offers: Offers
    forwarding: Forwarding
    preparation: Preparation
    probes: Probes
