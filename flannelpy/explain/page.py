"""What does a browser see of an agent? One page, made anew for each look: what is wrong, odd peers, the picture, events.

Of a thousand peers those are looked for that a person types a word of: a name, an address, a container's too, a state.

It asks for nothing from elsewhere. Its script, the only one that the browser is to run, has events come by themselves and fetches
the page again each ``AGAIN_S``, and a second after an event; without scripts the browser does. Nothing can be done but look.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator, Sequence
from hashlib import sha256
from html import escape

from netaddr import AddrFormatError, IPAddress, IPNetwork

from flannelpy.core.foreign import cut, printable
from flannelpy.explain import places
from flannelpy.explain.events import Events
from flannelpy.explain.graph import draw, mood_of
from flannelpy.explain.status import ConditionStatus, PeerStatus, Status
from flannelpy.explain.stream import mark

PAGE, EVENTS = places.OVERVIEW, places.EVENTS
CONTENT_TYPE = "text/html; charset=utf-8"
AGAIN_S = 5
MOST_PEERS, MOST_CONDITIONS, MOST_EVENTS = 100, 50, 50
WORDS = 400
"""Letters of a text of others that are shown."""

LONGEST = 100
"""Letters of a word that is looked for."""
_HINT = "find peers: a name, an address, a state"
_RANK = {"bad": 0, "odd": 1, "unasked": 2, "good": 3}

_SCRIPT = """
(() => {
  "use strict";
  const newest = [];
  const word = document.querySelector("#word");
  let main = document.querySelector("main"), due = 0, live = false;
  const place = (event) => {
    const row = document.createElement("tr");
    const when = event.at.slice(0, 19).replace("T", " "), what = event.text + (event.name ? ` [${event.name}]` : "");
    for (const [text, style] of [[when, "t"], [what, ""]]) {
      const cell = document.createElement("td");
      cell.textContent = text;
      cell.className = style;
      row.append(cell);
    }
    const first = main.querySelector("#events tr");
    if (first) first.after(row);
  };
  const show = () => {
    const [life, number] = main.dataset.last.split(":");
    for (const [mark, event] of newest) if (mark !== life || event.number > Number(number)) place(event);
    main.querySelector("#how").textContent = live ? "Events come as they happen; all else" : "All";
  };
  const fetched = async () => {
    const asked = word.value, query = asked ? `?word=${encodeURIComponent(asked)}` : "";
    try {
      const answer = await fetch(`./${query}`, {cache: "no-store"});
      const made = new DOMParser().parseFromString(await answer.text(), "text/html").querySelector("main");
      if (!answer.ok || !made) throw new Error(answer.status);
      if (asked !== word.value) return;
      history.replaceState(null, "", `./${query}`);
      main.replaceWith(made);
      main = made;
      document.body.classList.remove("away");
    } catch {
      document.body.classList.add("away");
    }
    show();
  };
  const source = new EventSource(`events?after=${main.dataset.last}`);
  source.onopen = () => { live = true; show(); };
  source.onerror = () => { live = false; show(); };
  source.onmessage = (message) => {
    const event = JSON.parse(message.data);
    newest.push([message.lastEventId.split(":")[0], event]);
    newest.splice(0, newest.length - 50);
    place(event);
    due = due || setTimeout(() => { due = 0; fetched(); }, 1000);
  };
  let typed = 0;
  word.addEventListener("input", () => { clearTimeout(typed); typed = setTimeout(fetched, 250); });
  setInterval(fetched, AGAIN);
})();
""".replace("AGAIN", str(AGAIN_S * 1000))

_HASH = b64encode(sha256(_SCRIPT.encode()).digest()).decode()
_POLICY = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{_HASH}'; connect-src 'self'"
"""Whatever somebody might get into the page, nothing but the script above is run, and nobody else is asked."""

_STYLE = """
:root{color-scheme:light dark}
body{font:15px/1.45 system-ui,sans-serif;margin:1.5rem auto;max-width:1104px;padding:0 1rem;background:#fff;color:#1f2933}
h1{font-size:1.25rem}h2{font-size:1.05rem;margin:1.6rem 0 .4rem}svg{width:100%;height:auto}
table{border-collapse:collapse;width:100%}
td,th{padding:.25rem .8rem .25rem 0;text-align:left;vertical-align:top;overflow-wrap:anywhere}
th{font-weight:600;border-bottom:1px solid #8795a1}td:first-child{white-space:nowrap}
.t{color:#52677a}.error{color:#c62828}.warning{color:#b26a00}.yes{color:#2f8f4e}
@media (prefers-color-scheme:dark){body{background:#14181d;color:#e6ebf0}.t{color:#9fb0c0}
.error{color:#ff6b6b}.warning{color:#f0b04a}.yes{color:#5cc27f}}
#word{font:inherit;width:100%;max-width:24rem;box-sizing:border-box;padding:.25rem .5rem}
#away{display:none;color:#c62828}.away #away{display:block}.away main{opacity:.45}
td.t,td.n{white-space:nowrap}#picture{overflow-x:auto}
@media (max-width:640px){#picture svg{min-width:720px}tr:first-child{display:none}td.n{white-space:normal}
td{display:block;padding:.1rem 0}tr{display:block;padding:.4rem 0;border-bottom:1px solid #8795a1}}
"""


def page(status: Status, events: Events | None = None, word: str = "") -> str:
    """The page. ``word``: what peers are looked for by; empty: by none."""
    events, word = events or Events("", 0, 0, ()), word.strip()[:LONGEST]
    return "\n".join(["<!DOCTYPE html>", '<html lang="en">', *_head(), *_body(status, events, word), "</html>", ""])


def _head() -> Iterator[str]:
    yield '<head><meta charset="utf-8"><title>flannelpy</title>'
    yield f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
    yield f'<noscript><meta http-equiv="refresh" content="{AGAIN_S}"></noscript>'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<style>{_STYLE}</style></head>"


def _body(status: Status, events: Events, word: str) -> Iterator[str]:
    ready = '<span class="yes">ready</span>' if status.ready else '<span class="error">not ready</span>'
    yield '<body><p id="away">The agent does not answer. Below is what it said last.</p>'
    said = f'placeholder="{_HINT}" aria-label="{_HINT}" value="{_text(word)}"'
    yield f'<p><input id="word" type="search" autocomplete="off" {said}></p>'
    yield f'<main data-last="{_text(mark(events.life, events.last))}"><h1>flannelpy {_text(status.version)}: {ready}</h1>'
    yield from (f'<p class="error">{_text(why)}</p>' for why in status.why_not[:MOST_CONDITIONS])
    if word:
        found = sorted((peer for peer in status.peers if matches(peer, word)), key=lambda peer: _RANK[mood_of(peer)])
        title = f"Peers with {_text(word)}: {len(found):,} of {len(status.peers):,}"
        heads = ("subnet", "PublicIP", "how it is")
        yield from _table(title, heads, (_peer(peer) for peer in found[:MOST_PEERS]), "none", len(found) - MOST_PEERS)
    names = {peer.key: peer.name for peer in status.peers if peer.name}
    conditions = status.conditions[:MOST_CONDITIONS]
    wrong = (_condition(each, names.get(each.subject)) for each in conditions)
    yield from _table("What is wrong", ("", "since", "what to do"), wrong, "nothing")
    odd = sorted((peer for peer in status.peers if mood_of(peer) in ("bad", "odd")), key=lambda peer: _RANK[mood_of(peer)])
    heads = ("subnet", "PublicIP", "why")
    yield from _table("Peers that want a look", heads, (_peer(peer) for peer in odd[:MOST_PEERS]), "none", len(odd) - MOST_PEERS)
    yield f'<div id="picture">{draw(status)}</div>'
    newest = list(reversed(events.events))[:MOST_EVENTS]
    rows = (f'<td class="t">{_text(each.at[:19].replace("T", " "))}</td><td>{_text(each.told)}</td>' for each in newest)
    yield '<section id="events">'
    yield from _table("What has happened, UTC", ("when", "what"), rows, "nothing yet")
    yield f'</section><p class="t"><span id="how">All</span> is made anew every {AGAIN_S} s.'
    yield "More: flannelpy status --peers, flannelpy events, flannelpy doctor.</p></main>"
    yield f"<script>{_SCRIPT}</script></body>"


def matches(peer: PeerStatus, word: str) -> bool:
    """True where a peer has this in what is known of it; of an address, where it is of its subnet."""
    subnets = [each for each in (peer.subnet, peer.subnet6) if each]
    probe = "" if peer.probe is None else f"{peer.probe.state} {peer.probe.why}"
    known = (*subnets, peer.public_ip, peer.public_ipv6, peer.name, peer.state, peer.why, peer.backend_type, peer.carrier, probe)
    if word.lower() in " ".join(filter(None, known)).lower():
        return True
    try:
        address = IPAddress(word)
        return any(net.version == address.version and address in net for net in map(IPNetwork, subnets))
    except (AddrFormatError, ValueError):
        return False


def _table(title: str, heads: Sequence[str], rows: Iterator[str], none: str, more: int = 0) -> Iterator[str]:
    yield f"<h2>{title}</h2>"
    found = [f"<tr>{row}</tr>" for row in rows]
    if not found:
        yield f'<p class="t">{none}</p>'
        return
    yield f"<table><tr>{''.join(f'<th>{head}</th>' for head in heads)}</tr>{''.join(found)}</table>"
    if more > 0:
        yield f'<p class="t">and {more:,} more</p>'


def _condition(each: ConditionStatus, name: str | None) -> str:
    """``name``: of the peer that it is about."""
    style = each.severity if each.severity in ("error", "warning") else "t"
    said = f'<td class="{style}" style="white-space:normal">{_text(each.text + (f" [{name}]" if name else ""))}</td>'
    return f'{said}<td class="t">{_text(each.since[:19].replace("T", " "))}</td><td>{_text(each.remedy)}</td>'


def _peer(peer: PeerStatus) -> str:
    subnets = " ".join(each for each in (peer.subnet, peer.subnet6) if each)
    probe = peer.probe
    rtt = "" if probe is None or probe.rtt_ms is None else f"{probe.rtt_ms:.1f} ms"
    why = peer.why or (": ".join(filter(None, (probe.state, probe.why or rtt))) if probe is not None else peer.state)
    name = f" [{peer.name}]" if peer.name else ""
    return f'<td>{_text(subnets)}</td><td class="n">{_text(peer.public_ip + name)}</td><td>{_text(why)}</td>'


def _text(text: str) -> str:
    return escape(cut(printable(text), WORDS))
