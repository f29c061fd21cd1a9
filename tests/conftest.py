"""What holds for every test: none fails because the machine is busy with something else, or because of a terminal's width."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

settings.register_profile("loaded", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("loaded")

os.environ.pop("COLUMNS", None)  # pytest-xdist tells its workers the width of the terminal
