"""Where does an agent answer? Its socket in the run directory, and the path of each page: known without what makes the pages."""

from __future__ import annotations

SOCKET = "agent.sock"
"""The agent's socket in its run directory."""

READY = "ready"
"""A file beside it, which is locked for as long as the agent is ready."""

STATUS, EVENTS, SETUP, PLAN = "/status", "/events", "/setup", "/plan"
"""Pages on it, for commands on this host. At ``EVENTS`` the health port streams them, for a browser."""

OVERVIEW, METRICS = "/", "/metrics"
"""Pages at the health port, for a browser and for Prometheus."""
