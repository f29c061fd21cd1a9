"""``python -m netns_lab demo`` and the like: a program of the lab, whose imports ctrl-C may interrupt without a traceback."""

import sys
from importlib import import_module

from netns_lab.interrupt import heed_interrupts

PROGRAMS = (
    "demo",
    "gallery",
    "gallery_page",
    "calm",
    "screenshots",
    "swarm",
    "soak_udp",
    "bench_agent",
    "bench_udp",
    "bench_registry",
    "bench_migration",
    "profiling",
)


def main() -> int:
    """The program's exit code; 2 where there is none of that name."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in PROGRAMS:
        print(f"netns_lab: {name!r}: expected one of {', '.join(PROGRAMS)}", file=sys.stderr)
        return 2
    heed_interrupts()
    try:
        program = import_module(f"netns_lab.{name}")
    except KeyboardInterrupt:
        return 130  # nothing has been made yet
    sys.argv[:2] = [name]
    code: int = program.main()
    return code


if __name__ == "__main__":
    sys.exit(main())
