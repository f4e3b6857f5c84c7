"""What templates do with their literals."""

from __future__ import annotations

import jinja2
import pytest

from frontend.processing.chat.template_pieces import Use, template_pieces
from tests.frontend.processing.chat import templates

WRITTEN = [
    "<T>",
    "{{ '<T>' + x }}",
    '{{ x ~ "<T>" }}',
    "{% set a = '<T>' if x == 'y' else '' %}{{ a }}",
    "{{ x.replace('y', '<T>') }}",
    "{{ x | replace('y', '<T>') }}",
    "{{ ['<T>', x] | join }}",
    "{{ x.split('y')[0] + '<T>' }}",
    "{{ f('<T>') }}",
    "{% raw %}{{ <T>{% endraw %}",
    "{{ ('<T>' + x).strip() }}",
    "{{ {'a': '<T>'}['a'] }}",
    "{% if x %}{{ ['<T>'] }}{% endif %}{{ ['<T>'] }}",
]
SOUGHT = [
    "{% if '<T>' in x %}{% endif %}",
    "{% if '<T>' not in x %}{% endif %}",
    "{% if x == '<T>' or '<T>' != x %}{% endif %}",
    "{% if x in ['y', '<T>'] %}{% endif %}",
    "{% if x in ('y', '<T>') %}{% endif %}",
    "{{ x.split('<T>')[-1] }}",
    "{% if x.startswith(('y', '<T>')) %}{% endif %}",
    "{{ x.replace('<T>', '') }}",
    "{{ x | replace('<T>', '') }}",
    "{{ f(x.lstrip('<T>')) }}",
]
NEITHER = ["{{ x['<T>'] }}", "{{ f(x)['<T>'] }}", "{# <T> #}", "{{ x[0]['<T>'] }}"]


@pytest.mark.parametrize(
    ("source", "use"),
    [*((each, Use.WRITTEN) for each in WRITTEN), *((each, Use.SOUGHT) for each in SOUGHT),
     *((each, Use.CODE) for each in NEITHER)],
)  # fmt: skip
def test_a_literal_is_written_or_sought(source: str, use: Use) -> None:
    assert {piece.use for piece in template_pieces(source) if "<T>" in piece.text} == {use}


@pytest.mark.parametrize(
    "source",
    [
        *WRITTEN, *SOUGHT, *NEITHER, templates.CHATML, templates.QWEN, templates.PIECES,
        "{{ key }}:{\r\n  {%- if a -%}  \n} {% endif %}\n\n",
        "a\n  {% if a %}  \n b {%- endif +%} c\n",
    ],
)  # fmt: skip
def test_the_pieces_are_the_template(source: str) -> None:
    """Space that Jinja leaves out stays, as {%- after { shows."""
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    joined = "".join(piece.text for piece in template_pieces(source))
    assert environment.parse(joined) == environment.parse(source)
