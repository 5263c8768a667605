"""The page /docs: the API's OpenAPI description as one HTML document, without scripts and without other servers."""

import json
from html import escape
from typing import Any

STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
pre, code { font-family: ui-monospace, monospace; font-size: 14px }
pre { overflow-x: auto; padding: .75rem; border: 1px solid; border-radius: .4rem }
table { border-collapse: collapse; width: 100% }
th, td { text-align: left; vertical-align: top; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid }
h2 { margin-top: 2.5rem }
"""


def docs_page(described: dict[str, Any]) -> str:
    """An HTML document with every endpoint, field, answer and problem of an OpenAPI description."""
    title = escape(described["info"]["title"])
    parts = [
        f"<h1>{title}</h1><p>{escape(described['info']['description'])}</p>",
        "<p>For programs: <a href='openapi.json'>openapi.json</a>, <a href='problems'>every kind of problem</a>.</p>",
        "<nav aria-label='Pages'><ul>",
        *(f"<li><a href='#{_anchor(*one)}'><code>{_name(*one)}</code></a></li>" for one in _operations(described)),
        "</ul></nav>",
        *(_section(method, path, described) for method, path in _operations(described)),
    ]
    head = f"<meta charset='utf-8'><meta name='viewport' content='width=device-width'><title>{title}</title>"
    body = "".join(parts)
    return f"<!doctype html><html lang='en'><head>{head}<style>{STYLE}</style></head><body><main>{body}</main></body>"


def _operations(described: dict[str, Any]) -> list[tuple[str, str]]:
    return [(method, path) for path, methods in described["paths"].items() for method in methods]


def _name(method: str, path: str) -> str:
    return f"{method.upper()} {escape(path)}"


def _anchor(method: str, path: str) -> str:
    return f"{method}{escape(path).replace('/', '-')}"


def _section(method: str, path: str, described: dict[str, Any]) -> str:
    operation = described["paths"][path][method]
    title = f"<h2 id='{_anchor(method, path)}'><code>{_name(method, path)}</code></h2>"
    parts = [f"{title}<p>{escape(operation['summary'])}"]
    if operation.get("security"):
        parts.append(" (with a token: <code>Authorization: Bearer …</code>)")
    parts.append("</p>")
    queries = {one["name"]: one for one in operation.get("parameters", [])}
    parts.append(_fields("Queries", {name: one | one["schema"] for name, one in queries.items()}, []))
    for kind, form in operation.get("requestBody", {}).get("content", {}).items():
        schema = form["schema"]
        parts.append(_fields(f"Fields of the {kind}", schema["properties"], schema["required"]))
    rows = "".join(_answer(status, answer, described) for status, answer in operation["responses"].items())
    parts.append(f"<h3>Answers</h3><table><tr><th>status</th><th>what</th></tr>{rows}</table>")
    for kind, answer in operation["responses"].get("200", {}).get("content", {}).items():
        if "example" in answer:
            text = json.dumps(answer["example"], indent=2, ensure_ascii=False)
            parts.append(f"<h3>Example ({escape(kind)})</h3><pre tabindex='0'>{escape(text)}</pre>")
    return "".join(parts)


def _fields(title: str, fields: dict[str, dict[str, Any]], required: list[str]) -> str:
    rows = "".join(
        f"<tr><td><code>{escape(name)}</code></td><td>{escape(_kind(schema))}{', required' * (name in required)}</td>"
        f"<td>{escape(schema.get('description', ''))}</td></tr>"
        for name, schema in fields.items()
    )
    return f"<h3>{escape(title)}</h3><table><tr><th>name</th><th>type</th><th></th></tr>{rows}</table>" if rows else ""


def _kind(schema: dict[str, Any]) -> str:
    if schema.get("type") == "array":
        return f"list of {_kind(schema['items'])}"
    return "file" if schema.get("format") == "binary" else str(schema.get("type", "JSON"))


def _answer(status: str, answer: dict[str, Any], described: dict[str, Any]) -> str:
    kinds = [name for content in answer.get("content", {}).values() for name in content.get("examples", {})]
    listed = f": {', '.join(f'<code>{escape(kind)}</code>' for kind in kinds)}" if kinds else ""
    what = escape(answer["description"]) + listed + _members(answer, described)
    return f"<tr><td>{escape(status)}</td><td>{what}</td></tr>"


def _members(answer: dict[str, Any], described: dict[str, Any]) -> str:
    """The members of a JSON answer that has a schema of its own, with their meanings."""
    reference = answer.get("content", {}).get("application/json", {}).get("schema", {}).get("$ref", "")
    schema = described["components"]["schemas"].get(reference.rpartition("/")[2], {})
    members = [
        f"<li><code>{escape(name)}</code> {escape(member.get('description', ''))}</li>"
        for name, member in schema.get("properties", {}).items()
    ]
    return f"<ul>{''.join(members)}</ul>" if members else ""
