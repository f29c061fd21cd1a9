"""What is read out of a flame graph: who has had the processor."""

from __future__ import annotations

from netns_lab.profiling import own_times


def frame(name: str, depth: int, first: int, width: int) -> str:
    """One of a hundred samples' flame graph, as py-spy writes it."""
    place = f'x="{first}%" y="{36 + 16 * depth}" width="{width}%" height="15" fill="rgb(1,2,3)" fg:x="{first}" fg:w="{width}"'
    return f"<g><title>{name} ({width} samples, {width}.00%)</title><rect {place}/><text>{name}</text></g>"


GRAPH = "".join(
    (
        frame("all", 0, 0, 100),
        frame("turn (process.py:130)", 1, 0, 90),
        frame("out (fast_path.py:1)", 2, 0, 60),
        frame("add (headers.py:2)", 3, 0, 40),
        frame("in (fast_path.py:9)", 2, 60, 30),
        frame("add (headers.py:2)", 3, 60, 5),
    )
)


def test_who_has_had_the_processor_is_a_frame_without_what_it_has_called() -> None:
    assert own_times(GRAPH) == [
        ("add (headers.py:2)", 0.45),
        ("in (fast_path.py:9)", 0.25),
        ("out (fast_path.py:1)", 0.2),
        ("all", 0.1),
    ]
    assert own_times("<svg></svg>") == []
