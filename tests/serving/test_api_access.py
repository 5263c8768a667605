"""The API behind a proxy: its public address, the names, origins and token it asks for, every page for every client."""

import re
import subprocess

import pytest
from helpers.models import photograph
from starlette.testclient import TestClient

from exp_tools.cli.main import main
from exp_tools.errors import UserError
from exp_tools.serving.api.access import PROTECTED, Access, read_token
from exp_tools.serving.api.app import create_app
from exp_tools.serving.predictor import SCOPE
from exp_tools.serving.public_url import PublicUrl, allowed_hosts, host_name, parse_origin, parse_public_url

TOKEN = "a-token-of-this-test"
PUBLIC = parse_public_url("https://example.org/lesions")
GETS = ("/", "/health", "/ready", "/model", "/problems", "/openapi.json", "/docs", "/metrics")


@pytest.fixture(scope="module")
def client(predictor) -> TestClient:
    return TestClient(create_app(predictor, metrics=True), follow_redirects=False)


@pytest.fixture(scope="module")
def guarded(predictor) -> TestClient:
    """One that is offered by a proxy and asks for a token."""
    access = Access(allowed_hosts("127.0.0.1", PUBLIC), ("https://clinic.example",), TOKEN, PUBLIC)
    return TestClient(create_app(predictor, access=access, metrics=True), "http://example.org", follow_redirects=False)


def upload() -> dict:
    return {"files": {"image": ("photo.jpg", photograph(1), "image/jpeg")}}


BEARER = {"Authorization": f"Bearer {TOKEN}"}


@pytest.mark.parametrize("page", GETS)
def test_head_is_get_without_a_body_on_every_page(client, page):
    got, head = client.get(page), client.head(page)
    assert (got.status_code, head.status_code, head.content) == (200, 200, b"")
    same = ["content-type"] + ["content-length"] * (page != "/metrics")  # which counts the request before
    assert [head.headers[name] for name in same] == [got.headers[name] for name in same]
    assert got.headers["content-security-policy"].endswith("frame-ancestors 'none'")


def test_every_get_of_the_app_is_among_those_tried(client):
    paths = {route.path for route in client.app.routes if "GET" in route.methods}
    assert paths == set(GETS)


def test_a_wrong_method_is_told_the_right_ones(client):
    assert client.delete("/health").headers["allow"] == "GET, HEAD"
    assert (client.head("/predict").status_code, client.head("/predict").headers["allow"]) == (405, "POST")


def test_a_slash_at_the_end_is_no_redirect(client, predictor):
    expected = predictor.predict(photograph(1)).probabilities
    assert client.post("/predict/", **upload()).json()["probabilities"] == expected
    assert client.get("/health/").status_code == 200
    assert client.get("/model//").status_code == 404


def test_the_base_path_is_known_with_and_without_it(guarded):
    for page in ("/lesions/model", "/model"):
        assert guarded.get(page, headers=BEARER).status_code == 200
    assert guarded.get("/lesions").json() == guarded.get("/").json()
    assert guarded.get("/lesionsmodel").status_code == 404
    assert guarded.get("/lesions/none").json()["type"] == "/lesions/problems#not_found"
    files = [("images", ("a.jpg", b"no image"))]
    body = guarded.post("/lesions/predict/batch", files=files, headers=BEARER).json()
    assert body["results"][0]["problem"]["type"] == "/lesions/problems#not_an_image"
    assert guarded.get("/openapi.json").json()["servers"] == [{"url": "https://example.org/lesions"}]


@pytest.mark.parametrize(("host", "status"), [
    ("example.org", 200),
    ("EXAMPLE.org.:443", 200),
    ("localhost:8000", 200),
    ("[::1]:8000", 200),
    ("evil.example", 421),
    ("example.org.evil.example", 421),
    ("evil@example.org", 421),
    ("example.org:port", 421),
    ("", 421),
])  # fmt: skip
def test_only_its_own_names_are_answered_but_probes_always(guarded, host, status):
    answer = guarded.get("/model", headers={"Host": host, **BEARER})
    assert answer.status_code == status
    if status == 421:
        assert answer.json()["kind"] == "wrong_host"
    assert guarded.get("/health", headers={"Host": host}).status_code == 200


def test_names_that_are_known():
    assert allowed_hosts("127.0.0.1", None) == ("127.0.0.1", "localhost", "::1")
    assert allowed_hosts("0.0.0.0", None) is None  # nobody said under which name others come
    assert allowed_hosts("0.0.0.0", PUBLIC) == ("127.0.0.1", "localhost", "::1", "example.org")
    assert allowed_hosts("192.0.2.1", PUBLIC)[3:] == ("192.0.2.1", "example.org")
    assert host_name("a b") == "a b"  # which is no name of ours
    assert host_name("x/y") is None


@pytest.mark.parametrize("page", PROTECTED)
@pytest.mark.parametrize("given", [None, "", "Bearer", "Bearer wrong", f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN}x"])
def test_without_the_token_there_is_nothing(guarded, page, given):
    headers = {} if given is None else {"Authorization": given}
    answer = guarded.post(page, headers=headers) if "predict" in page else guarded.get(page, headers=headers)
    assert (answer.status_code, answer.json()["kind"]) == (401, "unauthorized")
    assert answer.headers["www-authenticate"] == "Bearer"
    assert TOKEN not in answer.text


def test_with_the_token_there_is_all_and_openapi_says_where(guarded):
    assert guarded.post("/predict", headers={"Authorization": f"bearer  {TOKEN}"}, **upload()).status_code == 200
    described = guarded.get("/openapi.json").json()
    wanted = {path for path, methods in described["paths"].items() for one in methods.values() if "security" in one}
    assert wanted == set(PROTECTED) - {"/metrics"}
    assert described["components"]["securitySchemes"] == {"token": {"type": "http", "scheme": "bearer"}}


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "No such file"), (b"", "one line"), (b"short", "one line"), (b"two words of it, long", "one line"),
     (b"line-of-one-token\nand-of-another-one", "one line"), ("ein Schlüssel-ist-das".encode(), "one line"),
     (b"\xff\xfe" * 20, "no UTF-8")],
)  # fmt: skip
def test_a_file_without_a_token_is_refused_and_the_remedy_works(tmp_path, content, words):
    path = tmp_path / "token"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=words) as error:
        read_token(path)
    assert "\n" not in str(error.value)
    subprocess.run(str(error.value).partition("by: ")[2], shell=True, check=True)
    assert len(read_token(path)) > 40


def preflight(client: TestClient, origin: str, method: str = "POST"):
    asked = {"Origin": origin, "Access-Control-Request-Method": method}
    return client.options("/predict", headers={**asked, "Access-Control-Request-Headers": "authorization"})


def test_pages_of_a_named_origin_may_use_it_and_no_others(client, guarded):
    assert preflight(guarded, "https://clinic.example").status_code == 200
    for refused in (preflight(guarded, "https://evil.example"), preflight(guarded, "https://clinic.example", "PUT")):
        assert (refused.status_code, refused.json()["kind"]) == (403, "wrong_origin")
    page = {"Origin": "https://clinic.example"}
    for answer in (guarded.post("/predict", headers=page | BEARER, **upload()), guarded.get("/model", headers=page)):
        assert answer.headers["access-control-allow-origin"] == "https://clinic.example"
        assert "X-Request-ID" in answer.headers["access-control-expose-headers"]
    other = guarded.get("/health", headers={"Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in other.headers
    assert "access-control-allow-origin" not in client.get("/health", headers=page).headers
    assert preflight(client, "https://clinic.example").status_code == 405


@pytest.mark.parametrize(("text", "url"), [
    ("https://Example.org", PublicUrl("https", "example.org", 443, "")),
    ("http://example.org:8080/a/b/", PublicUrl("http", "example.org", 8080, "/a/b")),
    ("https://[2001:db8::1]:444", PublicUrl("https", "2001:db8::1", 444, "")),
])  # fmt: skip
def test_public_addresses(text, url):
    assert parse_public_url(text) == url
    assert parse_public_url(str(url)) == url


@pytest.mark.parametrize(
    "text",
    ["", "example.org", "ftp://example.org", "https://", "https:///a", "https://a:b@c", "https://a:99999", "https://a:x",
     "https://a?b", "https://a#b", "https://a/b c", "https://a/..", "https://a/%2e", "https://a//b", "https://ä.de"],
)  # fmt: skip
def test_what_is_no_public_address_is_one_line(text, capsys):
    for command in ("api", "app"):
        assert main([command, "--port", "0", "--public-url", text or " "]) == 1
        said = capsys.readouterr().err
        assert said.startswith(f"error: --public-url {text}")
        assert said.count("\n") == 1


def test_origins_as_browsers_write_them():
    assert [
        parse_origin(text) for text in ("*", "https://A.example/", "http://a.example:80", "http://a.example:81")
    ] == [
        "*",
        "https://a.example",
        "http://a.example",
        "http://a.example:81",
    ]
    with pytest.raises(UserError, match=r"an origin has no path; write https://a\.example$"):
        parse_origin("https://a.example/page")
    with pytest.raises(UserError, match="expected http or https"):
        parse_origin("a.example")


def test_the_documentation_asks_nothing_of_another_server_and_has_all_that_openapi_has(guarded):
    answer = guarded.get("/docs")
    assert answer.headers["content-type"].startswith("text/html")
    assert not re.search(r"<script|<link|<img|src=|@import|url\(|https?://", answer.text)
    described = guarded.get("/openapi.json").json()
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            assert f"{method.upper()} {path}<" in answer.text
            assert operation["summary"] in answer.text
    for word in ("localization", "too_many_pixels", "melanoma_probability", "Bearer", SCOPE):
        assert word in answer.text
