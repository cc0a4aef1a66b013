import itertools
import sys

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from live import run, serving
from strokes import png, stroke_images

from app.serving import schemas
from app.serving.errors import MEDIA_TYPE, Unauthorized
from app.serving.http.auth import ApiKeyAuth, KeysError, read_keys

READER, WRITER = "reader-secret-0123456789", "writer-secret-9876543210"
QUESTIONS = ("/score", "/embed", "/reconstruct", "/decode")
GUARDED = ("/model", "/latent", "/drift", "/metrics", "/openapi.json", "/nowhere")
PUBLIC = ("/", "/page.css", "/page.js", "/livez", "/readyz", "/problems/unauthorized")
BODY = png(stroke_images(1, seed=0)[0])

Keys = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters=","), min_size=16, max_size=40)


@pytest.fixture(scope="module")
def guarded(tiny_store, tmp_path_factory):
    """A server with one key in its environment and one in a file."""
    folder = tmp_path_factory.mktemp("guarded")
    file = folder / "keys"
    file.write_text(f"# who may ask\n\nwriter:{WRITER}\r\n")
    variables = {"ODDIGIT_STORE": str(tiny_store), "ODDIGIT_DRAIN_S": "0", "ODDIGIT_LOG_FORMAT": "json"}
    keys = {"ODDIGIT_API_KEYS": f"reader:{READER}", "ODDIGIT_API_KEYS_FILE": str(file)}
    with serving(folder / "log", **variables, **keys) as running:
        yield running


@pytest.fixture(scope="module")
def visitor(guarded):
    """A client without a key."""
    with httpx.Client(base_url=guarded.url, timeout=60) as client:
        yield client


def score(client, **headers):
    sent = {"content-type": "image/png", **{name.replace("_", "-"): value for name, value in headers.items()}}
    return client.post("/score", content=BODY, headers=sent)


@pytest.mark.parametrize(
    "headers",
    [
        {"x_api_key": READER},
        {"x_api_key": WRITER},
        {"authorization": f"Bearer {READER}"},
        {"authorization": f"bearer {WRITER}"},
        {"authorization": f"BEARER   {READER}"},
    ],
)
def test_either_key_opens_in_either_header(visitor, headers):
    """Keys from the environment and from the file, as X-API-Key or as a bearer token in any case."""
    assert score(visitor, **headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"x_api_key": ""},
        {"x_api_key": "reader"},
        {"x_api_key": f"reader:{READER}"},
        {"x_api_key": READER[:-1]},
        {"x_api_key": READER + "0"},
        {"x_api_key": READER.upper()},
        {"x_api_key": b"\xff\xfe\x80"},
        {"x_api_key": "x" * 5000},
        {"authorization": READER},
        {"authorization": f"Basic {READER}"},
        {"authorization": "Bearer"},
        {"authorization": f"Bearer {READER} {READER}"},
        {"cookie": f"x-api-key={READER}"},
    ],
    ids=str,
)
def test_no_key_or_a_wrong_one_is_refused(visitor, headers):
    """401 with the scheme that would open, as a problem body, and nothing of the key that was sent."""
    response = score(visitor, **headers)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.headers["content-type"] == MEDIA_TYPE
    assert schemas.Problem.model_validate(response.json()).type == "/problems/unauthorized"
    assert READER[:8] not in response.text


@pytest.mark.parametrize("path", [*QUESTIONS, *GUARDED])
def test_everything_but_page_and_probes_needs_a_key(visitor, path):
    """Questions, the model, the metrics, the documentation, and even what is not there."""
    method = "POST" if path in QUESTIONS else "GET"
    assert visitor.request(method, path).status_code == 401
    assert visitor.request(method, path, headers={"x-api-key": READER}).status_code != 401


@pytest.mark.parametrize("path", PUBLIC)
def test_page_and_probes_stay_open(visitor, path):
    """Whoever runs the server needs no key to see that it runs."""
    assert visitor.get(path).status_code == 200


def test_a_key_in_the_query_does_not_open(visitor):
    """Keys in addresses end in logs and histories; they are not looked for there."""
    for name in ("key", "api_key", "X-API-Key", "access_token"):
        response = visitor.post("/score", params={name: READER}, content=BODY, headers={"content-type": "image/png"})
        assert response.status_code == 401


def test_the_log_has_the_name_and_never_the_key(guarded, visitor):
    """Each line says who asked; neither right nor wrong keys are in it, wherever they were sent."""
    wrong = "wrong-secret-5555555555"
    score(visitor, x_api_key=WRITER, x_request_id="by-writer")
    score(visitor, authorization=f"Bearer {wrong}", x_request_id="by-stranger")
    visitor.get("/drift", params={"key": READER}, headers={"x-api-key": wrong})
    assert " by writer" in guarded.told("by-writer")
    assert " by " not in guarded.told("by-stranger")
    text = guarded.log.read_text()
    assert not any(key in text for key in (READER, WRITER, wrong))


def test_without_keys_everyone_is_let_in(client):
    """A server that was given none asks for none."""
    assert score(client).status_code == 200
    assert score(client, x_api_key="anything").status_code == 200


@given(st.dictionaries(st.from_regex("[a-z]{1,8}", fullmatch=True), Keys, min_size=1, max_size=5), Keys)
def test_each_key_is_known_by_its_name_and_no_other_is(keys, other):
    """Whatever the keys: each opens as its own name where keys differ, and any other opens nothing."""
    door = ApiKeyAuth(keys)
    for name, key in keys.items():
        own, bearer = {b"x-api-key": key.encode()}, {b"authorization": b"Bearer " + key.encode()}
        for headers in (own, bearer, {b"authorization": b"Bearer of-a-gateway", **own}, {b"x-api-key": b"", **bearer}):
            assert keys[door.authenticate(headers)] == keys[name]
    if other not in keys.values():
        with pytest.raises(Unauthorized):
            door.authenticate({b"x-api-key": other.encode()})
    with pytest.raises(Unauthorized):
        door.authenticate({})


def test_names_and_bare_keys_are_read(tmp_path):
    """`name:key`, or a key alone; a key may hold colons; spaces around, comments and empty lines do not count."""
    file = tmp_path / "keys"
    file.write_text(f"  # comment\n\n  c:{'c' * 16}  \n{'d' * 16}\n")
    keys = read_keys(f"a:{'a' * 16}, b:b:{'b' * 16}", file)
    assert keys == {"a": "a" * 16, "b": "b:" + "b" * 16, "c": "c" * 16, "key-4": "d" * 16}
    assert read_keys(None, None) == {}


@given(st.dictionaries(st.from_regex("[a-z0-9_-]{1,8}", fullmatch=True), Keys, min_size=1, max_size=5))
def test_what_is_written_is_what_is_read(keys):
    """Any printable keys without commas come through the variable unchanged, and open."""
    text = ",".join(f"{name}:{key}" for name, key in keys.items())
    assert read_keys(text, None) == keys


@pytest.mark.parametrize(
    "text",
    [
        "short",
        "reader:short",
        f"reader:{READER},",
        f"reader:{READER},reader:{WRITER}",
        f"reader:{'é' * 20}",
        f"re\x07ader:{READER}",
        f"reader: {' ' * 20}x",
        f"reader: {READER}",
        "reader:abc\tdef\x00ghi\x1bjkl",
    ],
)
def test_keys_that_cannot_be_used_are_refused_without_showing_them(text):
    """Too short, twice the same name, or nothing that a header could carry: one sentence, and not the key."""
    with pytest.raises(KeysError) as caught:
        read_keys(text, None)
    sentence = str(caught.value)
    assert len(sentence.splitlines()) == 1
    assert READER not in sentence
    assert "short" not in sentence


def bad_files(folder):
    (folder / "empty").write_text("")
    (folder / "comments").write_text("# nobody\n\n")
    (folder / "short").write_text(f"reader:{READER}\nwriter:tiny\n")
    (folder / "twice").write_text(f"reader:{READER}\nreader:{WRITER}\n")
    (folder / "bytes").write_bytes(b"\xff\xfe\x00\x01" * 10)
    (folder / "folder").mkdir()
    return [folder / name for name in ("empty", "comments", "short", "twice", "bytes", "folder", "missing")]


def test_a_bad_file_is_refused_in_a_sentence(tmp_path):
    """An empty, wrong or unreadable file never means that everyone is let in."""
    for file in bad_files(tmp_path):
        with pytest.raises(KeysError) as caught:
            read_keys(None, file)
        assert len(str(caught.value)) > 20
        assert READER not in str(caught.value)
        assert "tiny" not in str(caught.value)


def test_a_server_does_not_start_with_a_bad_file(tiny_store, tmp_path):
    """Exit code 2 and one sentence; no key in it, no trace."""
    bad_files(tmp_path)
    variables = {"ODDIGIT_STORE": str(tiny_store), "ODDIGIT_API_KEYS_FILE": str(tmp_path / "twice")}
    done = run(sys.executable, "-m", "app", "serve", **variables)
    assert done.returncode == 2
    assert "API key" in done.stderr
    assert READER not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_keys_and_origins_go_together(tiny_store, tmp_path):
    """A browser's preflight carries no key and is answered; the question itself needs one, and its refusal can be read."""
    variables = {
        "ODDIGIT_STORE": str(tiny_store),
        "ODDIGIT_API_KEYS": READER,
        "ODDIGIT_CORS_ORIGINS": "https://one.example, https://two.example",
        "ODDIGIT_DRAIN_S": "0",
    }
    with serving(tmp_path / "log", **variables) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        asked = {"access-control-request-method": "POST", "access-control-request-headers": "x-api-key"}
        for origin, key in itertools.product(("https://two.example", "https://three.example"), ("", READER)):
            known = origin == "https://two.example"
            preflight = client.options("/score", headers={"origin": origin, **asked})
            response = score(client, origin=origin, x_api_key=key)
            assert (preflight.status_code == 200) == known
            assert response.status_code == (200 if key else 401)
            for answer in (preflight, response):
                assert answer.headers.get("access-control-allow-origin") == (origin if known else None)


def test_other_origins_may_not_ask_unless_they_are_named(client):
    """Without the setting no answer invites a browser of another page."""
    response = score(client, origin="https://one.example")
    assert not any(name.startswith("access-control") for name in response.headers)
