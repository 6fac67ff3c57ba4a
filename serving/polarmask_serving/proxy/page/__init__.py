"""The page at /demo: one file without any other resource, and what a browser may do on it."""

import base64
import hashlib
import html
import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class DemoPage:
    """The page for one model."""

    body: str
    """HTML."""
    policy: str
    """Content-Security-Policy: this script, this style, this server, nothing else."""


def demo_page(model: str) -> DemoPage:
    """Return the page that asks a model, by its name in URLs."""
    source = (Path(__file__).parent / "demo.html").read_text(encoding="utf-8")
    body = source.replace("@MODEL@", html.escape(model))
    policy = (
        f"default-src 'none'; script-src {_hash_of('script', body)}; "
        f"style-src {_hash_of('style', body)}; img-src blob: data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return DemoPage(body, policy)


def _hash_of(tag: str, body: str) -> str:
    (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", body, re.DOTALL)
    digest = hashlib.sha256(content.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
