"""Go's patterns in Python: what they find, what is refused; whatever is written, nothing but ValueError comes of it."""

from __future__ import annotations

import re
import warnings
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flannelpy.core.re2 import compile_re2


@pytest.mark.parametrize(
    ("pattern", "found", "passed_over"),
    [
        ("^eth[[:digit:]]$", "eth1", "ethx"),
        ("^[[:^digit:]a]+$", "eth", "eth1"),
        ("^[^[:alpha:]]+$", "192.0.2.1", "eth"),
        ("^[[:alpha:][:digit:]_.-]+$", "br-7.1_x", "br 7"),
        (r"^eth\pN\z", "eth1", "ethx"),
        (r"^\p{Lu}\p{Ll}+$", "Äpfel", "äpfel"),
        (r"^\PN+$", "eth", "eth1"),
        (r"^\p{^N}+$", "eth", "eth1"),
        (r"^a[\pN_]b", "a5b", "axb"),
        ("(?i)ETH1|EN", "en0", "wlan"),
        ("x(?P<a>(?i)E)(?<b>f)", "xef", "XEf"),
        ("x((?i)E|F)g", "xfg", "xfG"),
        ("(?i:E)t(h|y)", "ety", "ETY"),
        ("(?i-s:E.)t", "ext", "e\nt"),
        ("[]a]", "]", "b"),
        ("^[^]a]$", "b", "]"),
        ("^[[a]$", "[", "b"),
        ("^[a&&b]$", "&", "c"),
        (r"\Qa.b\E+", "a.bb", "axb"),
        (r"^\Qa[", "a[", "a"),
        (r"^\x{65}th\x31$", "eth1", "eth"),
        (r"^\d$", "1", "\u0661"),
        (r"^\w$", "a", "ä"),
        (r"\.1\b", "10.0.0.1", "10.0.0.11"),
    ],
)
def test_it_finds_what_it_finds_in_go(pattern: str, found: str, passed_over: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compiled = compile_re2(pattern)
    assert compiled.search(found)
    assert not compiled.search(passed_over)


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        (r"\p{Greek}", "RE2's \\p{Greek} is not understood here"),
        (r"\p{}", "RE2's \\p{} is not understood here"),
        ("(?U)a+", "RE2's flag U is not understood here"),
        ("a(?i)b", "RE2's (?i) is understood at the beginning of a pattern or group only"),
        ("a:(?i)b", "RE2's (?i) is understood at the beginning of a pattern or group only"),
        ("[[:foo:]]", "RE2 has no class [:foo:]"),
        (r"\C", "RE2's \\C (any byte) is not understood here"),
        (r"\x{zz}", "RE2's \\x{zz} is no code point"),
        (r"\x{110000}", "RE2's \\x{110000} is no code point"),
        ("(", "expected a pattern of RE2, as flannel takes it"),
        ("[", "expected a pattern of RE2, as flannel takes it"),
        ("a**", "expected a pattern of RE2, as flannel takes it"),
    ],
)
def test_what_is_not_understood_is_refused_in_words(pattern: str, why: str) -> None:
    with pytest.raises(ValueError, match=re.escape(why)):
        compile_re2(pattern)


PIECES = st.sampled_from(
    [*"[]^-()|?:*+.\\$&~{}aA1", "[:", ":]", "[:digit:]", r"\p", r"\P", "{L}", "{^N}", r"\Q", r"\E", r"\x{", "(?i)", "(?P<n>", r"\z"]
)


@settings(deadline=None)
@given(st.lists(PIECES, max_size=12).map("".join) | st.text(max_size=30))
def test_whatever_is_written_it_is_a_pattern_or_a_value_error(pattern: str) -> None:
    with suppress(ValueError):
        compile_re2(pattern).search("eth0")


@given(st.text(max_size=30))
def test_what_is_quoted_is_found_as_it_is(text: str) -> None:
    quoted = "\\Q" + text.replace("\\E", "") + "\\E"
    with suppress(ValueError):
        assert compile_re2(f"^{quoted}$").search(text.replace("\\E", "")) or text.endswith(("\\", "\n"))
