"""The HTML report: ONE file that needs no network, whole without a script, and safe whatever the strings in it are.

A policy in its head lets only the page's own script run and nothing be loaded, so that a string that slipped past the escaping
still could do nothing.
"""

import base64
import hashlib
from pathlib import Path
from typing import Any

from checkpoints.inspect.page_header import header_html
from checkpoints.inspect.page_parts import script_json, text
from checkpoints.inspect.page_routing import routing_sections
from checkpoints.inspect.page_run import checkpoints_section, evaluations_section, loss_section, method_section
from checkpoints.inspect.page_texts import texts_section
from checkpoints.inspect.page_view import View, page_data
from checkpoints.inspect.page_weights import weights_section

HERE = Path(__file__).parent
CONTENTS = {
    "loss": "Loss", "checkpoints": "Checkpoints", "evaluations": "Evaluations", "weights": "Weights", "experts": "Experts",
    "saturation": "Saturation", "coactivation": "Co-activation", "sources": "Sources", "tokens": "Tokens", "texts": "Texts",
    "method": "Method and data",
}  # fmt: skip

NO_SCRIPT = (
    '<noscript><p class="left-out">Where there is a choice, this page shows the last checkpoint and the first layer: '
    "its script does not run here. curves.json, written with it, has all of them.</p></noscript>"
)


def page_html(document: dict[str, Any]) -> str:
    """The report on a document of curves_file.py."""
    view = View(document)
    style, script = (HERE / "page.css").read_text(), (HERE / "page.js").read_text()
    parts = (
        loss_section,
        checkpoints_section,
        evaluations_section,
        weights_section,
        routing_sections,
        texts_section,
        method_section,
    )
    body = "".join(part(view) for part in parts)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{text(_policy(script))}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(document['run']['name'])}: training run</title><style>{style}</style></head><body>"
        f"{header_html(view)}{_contents(body)}{NO_SCRIPT}<main>{body}</main>"
        '<div id="tip" aria-hidden="true" hidden></div><div id="spoken" class="spoken" role="status" aria-live="polite"></div>'
        f'<script type="application/json" id="data">{script_json(page_data(view))}</script>'
        f"<script>{script}</script></body></html>\n"
    )


def _policy(script: str) -> str:
    """Nothing is loaded, and the one script that runs is ours."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


def _contents(body: str) -> str:
    items = "".join(
        f'<li><a href="#{name}">{title}</a></li>' for name, title in CONTENTS.items() if f'<section id="{name}"' in body
    )
    return f'<nav aria-label="Contents"><ul>{items}</ul></nav>'
