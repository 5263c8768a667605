"""Every way a download can go has a defined end: the right bytes, or one message that says how to do it by hand."""

import dataclasses
import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import namedtuple
from pathlib import Path

import pytest
from helpers.file_server import Answer, FileServer, Pattern
from helpers.project import ROOT

from exp_tools.data.acquire import fetch as fetch_module
from exp_tools.data.acquire import transfer
from exp_tools.data.acquire.fetch import RemoteFile, fetch
from exp_tools.errors import UserError

MB = 1_000_000
BODY = Pattern(3 * MB)
CONTENT = BODY.content()
MD5 = hashlib.md5(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def pauses(monkeypatch) -> list[float]:
    """The waits that were asked for, none of them waited."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    waited: list[float] = []
    monkeypatch.setattr(fetch_module, "sleep", waited.append)
    return waited


@pytest.fixture
def server():
    with FileServer({"/set.zip": CONTENT}) as server:
        yield server


@pytest.fixture
def file(server) -> RemoteFile:
    return RemoteFile("set.zip", server.url("/set.zip"), BODY.size, MD5)


@pytest.fixture
def store(tmp_path) -> Path:
    return tmp_path / "store"


def is_whole(store: Path) -> bool:
    left = {path.name for path in store.iterdir() if not path.name.startswith(".")}
    return left == {"set.zip", "set.zip.json"} and (store / "set.zip").read_bytes() == CONTENT


def ranges(server: FileServer) -> list[str | None]:
    return [request.range for request in server.log]


def put_part(store: Path, content: bytes, **origin: str) -> None:
    store.mkdir()
    (store / "set.zip.part").write_bytes(content)
    (store / "set.zip.part.json").write_text(json.dumps(origin))


# --- the straight way, and what is remembered


def test_a_file_comes_whole_and_is_recorded(server, file, store):
    path = fetch(file, store)
    assert path == store / "set.zip"
    assert is_whole(store)
    record = json.loads((store / "set.zip.json").read_text())
    assert record == {
        "url": file.url,
        "size": BODY.size,
        "md5": file.md5,
        "sha256": hashlib.sha256(CONTENT).hexdigest(),
        "mtime_ns": path.stat().st_mtime_ns,
    }


def test_a_second_run_asks_nobody_and_hashes_nothing(server, file, store, monkeypatch):
    fetch(file, store)
    monkeypatch.setattr(fetch_module, "digests_of", None)
    assert fetch(file, store) == store / "set.zip"
    assert len(server.log) == 1


def test_a_touched_file_is_hashed_again_and_trusted_again(server, file, store, monkeypatch):
    path = fetch(file, store)
    os.utime(path, ns=(1, 1))
    fetch(file, store)
    monkeypatch.setattr(fetch_module, "digests_of", None)
    fetch(file, store)
    assert len(server.log) == 1


def test_a_file_changed_since_is_refused_and_left_alone(server, file, store):
    path = fetch(file, store)
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(1, 1))  # a coarse clock may give both writes one time
    with pytest.raises(UserError, match=r"not the expected file: its MD5 is \w{32}.*delete it"):
        fetch(file, store)
    assert path.read_bytes() == content
    assert len(server.log) == 1


def test_a_file_put_there_by_hand_is_checked_and_used(server, file, store):
    store.mkdir()
    (store / "set.zip").write_bytes(CONTENT)
    fetch(file, store)
    assert is_whole(store)
    assert server.log == []


def test_a_damaged_record_costs_a_check_and_no_download(server, file, store):
    fetch(file, store)
    (store / "set.zip.json").write_text("{")
    fetch(file, store)
    assert is_whole(store)
    assert len(server.log) == 1


def test_another_declared_checksum_is_not_satisfied_by_the_record(server, file, store):
    fetch(file, store)
    with pytest.raises(UserError, match="not the expected file"):
        fetch(dataclasses.replace(file, md5="0" * 32), store)


# --- broken transfers


def test_a_cut_connection_goes_on_where_it_ended(server, file, store, pauses):
    server.script = [Answer(cut=2 * MB)]
    fetch(file, store)
    assert is_whole(store)
    first, second = server.log
    assert first.range is None
    start = int(second.range.removeprefix("bytes=").removesuffix("-"))
    assert 2 * MB - transfer.CHUNK <= start <= 2 * MB
    assert second.if_range == server.etag
    assert pauses == []  # it had made progress


def test_a_stalled_connection_is_left_and_resumed(server, file, store):
    server.script = [Answer(stall=2 * MB)]
    fetch(file, store, timeout=0.2)
    assert is_whole(store)
    assert int(server.log[1].range[6:-1]) >= 2 * MB - transfer.CHUNK


def test_a_server_that_never_answers_is_given_up_in_words(server, file, store):
    server.script = [Answer(stall=0)] * 2
    with pytest.raises(UserError, match=r"no byte came for 0\.1 s"):
        fetch(file, store, timeout=0.1, attempts=2)


def test_a_server_without_range_is_read_from_the_start_again(server, file, store, capsys):
    server.script = [Answer(cut=2 * MB), Answer(ranges=False)]
    fetch(file, store)
    assert is_whole(store)
    assert "cannot resume" in capsys.readouterr().err


def test_a_server_without_range_that_always_cuts_is_given_up(server, file, store):
    server.script = [Answer(cut=2 * MB, ranges=False)] * 9
    with pytest.raises(UserError, match="connection was cut"):
        fetch(file, store, attempts=3)
    assert len(server.log) == 4  # one that got further than before, then three that did not


def test_a_body_that_ends_early_without_a_word_is_resumed(server, file, store):
    server.script = [Answer(sized=False, cut=2 * MB)]
    fetch(file, store)
    assert is_whole(store)
    assert ranges(server) == [None, f"bytes={2 * MB}-"]


def test_many_cuts_with_progress_are_no_failure(server, file, store):
    server.script = [Answer(cut=MB // 2)] * 5
    fetch(file, store, attempts=2)
    assert is_whole(store)


def test_a_file_replaced_on_the_server_is_never_joined_to_the_old_part(server, store):
    old, server.files["/set.zip"] = Pattern(3 * MB, key=1), BODY
    put_part(store, old.content()[:MB], url=server.url("/set.zip"), validator='"old"')
    fetch(RemoteFile("set.zip", server.url("/set.zip"), BODY.size, None), store)
    assert is_whole(store)
    assert (server.log[0].range, server.log[0].if_range) == (f"bytes={MB}-", '"old"')


def test_a_server_that_ignores_if_range_is_seen_through(server, store):
    put_part(store, Pattern(3 * MB, key=1).content()[:MB], url=server.url("/set.zip"), validator=server.etag)
    server.script = [Answer(headers={"ETag": '"new"'})]
    fetch(RemoteFile("set.zip", server.url("/set.zip"), BODY.size, None), store)
    assert is_whole(store)


def test_a_part_of_unknown_origin_is_used_only_when_a_checksum_will_tell(server, file, store):
    put_part(store, CONTENT[:MB])
    fetch(dataclasses.replace(file, md5=None), store)
    shutil.rmtree(store)
    put_part(store, CONTENT[:MB])
    fetch(file, store)
    assert is_whole(store)
    assert ranges(server) == [None, f"bytes={MB}-"]


def test_a_whole_part_is_only_checked(server, file, store):
    put_part(store, CONTENT)
    fetch(file, store)
    assert is_whole(store)
    assert server.log == []


def test_a_part_longer_than_the_file_is_dropped(server, file, store):
    put_part(store, CONTENT + b"more")
    fetch(file, store)
    assert is_whole(store)
    assert ranges(server) == [None]


# --- wrong content


def test_a_wrong_checksum_is_fetched_once_more_from_the_start(server, file, store, capsys):
    server.script = [Answer(corrupt=MB)]
    fetch(file, store)
    assert is_whole(store)
    assert ranges(server) == [None, None]
    assert "its MD5 is" in capsys.readouterr().err


def test_a_damaged_part_is_noticed_and_dropped(server, file, store):
    damaged = bytearray(CONTENT[:MB])
    damaged[0] ^= 1
    put_part(store, bytes(damaged))
    fetch(file, store)
    assert is_whole(store)
    assert ranges(server) == [f"bytes={MB}-", None]


def test_a_checksum_wrong_twice_is_refused_with_nothing_left_behind(server, file, store):
    server.script = [Answer(corrupt=MB)] * 2
    with pytest.raises(UserError, match=f"its MD5 is \\w{{32}}, expected was {file.md5}"):
        fetch(file, store)
    assert len(server.log) == 2
    assert [path.name for path in store.iterdir() if not path.name.startswith(".")] == []


@pytest.mark.parametrize("sized", [True, False])
def test_a_body_longer_than_declared_is_refused(server, file, store, sized):
    longer = {"Content-Length": str(BODY.size + 4)} if sized else {}
    server.script = [Answer(sized=sized, extra=b"more", headers=longer)] * 2
    with pytest.raises(UserError, match=r"offers 3,000,004 bytes|more than the expected 3,000,000 bytes"):
        fetch(file, store)
    assert len(server.log) == 2


def test_an_error_page_in_place_of_the_file_is_refused(server, file, store):
    server.script = [Answer(status=200)] * 2
    with pytest.raises(UserError, match="offers 4 bytes, not the expected 3,000,000"):
        fetch(file, store)


def test_another_range_than_asked_for_is_not_written(server, file, store):
    put_part(store, CONTENT[:MB])
    server.script = [Answer(headers={"Content-Range": f"bytes 0-{BODY.size - 1}/{BODY.size}"})]
    fetch(file, store)
    assert is_whole(store)
    assert ranges(server) == [f"bytes={MB}-", None]


# --- refusals and retries


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_refusal_ends_at_once(server, file, store, pauses, status):
    server.script = [Answer(status=status)]
    with pytest.raises(UserError, match=f"the server answered {status} "):
        fetch(file, store)
    assert len(server.log) == 1
    assert pauses == []


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_a_passing_trouble_is_waited_out_longer_each_time(server, file, store, pauses, status):
    server.script = [Answer(status=status)] * 5
    fetch(file, store)
    assert is_whole(store)
    assert [low <= wait <= low + 1 for low, wait in zip((1, 2, 4, 8, 16), pauses, strict=True)] == [True] * 5


def test_trouble_that_stays_is_given_up(server, file, store, pauses):
    server.script = [Answer(status=500)] * 9
    with pytest.raises(UserError, match="the server answered 500"):
        fetch(file, store, attempts=4)
    assert (len(server.log), len(pauses)) == (4, 3)


@pytest.mark.parametrize(
    ("asked", "waited"),
    [
        ("7", (7, 7)),
        ("0", (1, 2)),
        ("99999", (120, 120)),
        ("Fri, 01 Jan 2100 00:00:00 GMT", (120, 120)),
        ("soon", (1, 2)),
    ],
)
def test_the_servers_own_pause_is_kept_within_reason(server, file, store, pauses, asked, waited):
    server.script = [Answer(status=429, headers={"Retry-After": asked})]
    fetch(file, store)
    assert len(pauses) == 1
    assert waited[0] <= pauses[0] <= waited[1]


def test_a_server_that_is_not_there_is_given_up_in_words(file, store, pauses):
    with FileServer({}) as gone:
        url = gone.url("/set.zip")
    with pytest.raises(UserError, match=r"brought: no connection: Failed [\w :]*\[Errno \d+\] Connection refused\n"):
        fetch(dataclasses.replace(file, url=url), store, attempts=3)
    assert len(pauses) == 2


def test_a_resumed_range_survives_a_redirect_to_another_host(server, file, store):
    with FileServer({"/there": BODY}) as storage:
        redirect = Answer(status=303, headers={"Location": storage.url("/there?signature=x")})
        storage.files["/there?signature=x"] = BODY
        server.script = [redirect] * 2
        storage.script = [Answer(cut=2 * MB)]
        fetch(file, store)
    assert is_whole(store)
    assert storage.log[0].range is None
    assert int(storage.log[1].range[6:-1]) >= 2 * MB - transfer.CHUNK
    assert storage.log[1].if_range == storage.etag


def test_a_redirect_in_a_circle_ends_at_once(server, file, store, pauses):
    server.script = [Answer(status=302, headers={"Location": "/set.zip"})] * 40
    with pytest.raises(UserError, match="redirects"):
        fetch(file, store)
    assert pauses == []


def test_a_failure_prints_the_manual_way(server, file, store):
    server.script = [Answer(cut=2 * MB), Answer(status=404)]
    with pytest.raises(UserError) as error:
        fetch(file, store)
    have = (store / "set.zip.part").stat().st_size
    assert str(error.value).splitlines() == [
        "set.zip could not be brought: the server answered 404 Not Found",
        "To bring it by hand:",
        f"  from  {file.url}",
        f"  to    {store / 'set.zip'}",
        "  size  3,000,000 bytes",
        f"  MD5   {file.md5}",
        "A file put there is checked and used, and nothing is downloaded.",
        f"Or run again: {have / MB:.2f}MB are here, and the download goes on from there.",
    ]


# --- size unknown


@pytest.mark.parametrize("sized", [True, False])
def test_a_file_of_undeclared_size_comes_whole(server, file, store, sized):
    server.script = [Answer(sized=sized)]
    fetch(dataclasses.replace(file, size=None), store)
    assert is_whole(store)


@pytest.mark.parametrize("sized", [True, False])
def test_a_file_of_undeclared_size_cut_short_is_noticed(server, file, store, sized):
    server.script = [Answer(sized=sized, cut=2 * MB)]
    fetch(dataclasses.replace(file, size=None), store)
    assert is_whole(store)
    assert len(server.log) == 2


def test_a_whole_part_of_undeclared_size_is_recognised_by_the_server_having_no_more(server, file, store):
    put_part(store, CONTENT)
    fetch(dataclasses.replace(file, size=None), store)
    assert is_whole(store)
    assert ranges(server) == [f"bytes={BODY.size}-"]


def test_a_part_longer_than_the_servers_file_is_dropped(server, file, store):
    put_part(store, CONTENT + b"more")
    fetch(dataclasses.replace(file, size=None), store)
    assert is_whole(store)
    assert ranges(server) == [f"bytes={BODY.size + 4}-", None]


# --- the disk


def pretend_free(monkeypatch, free: int) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("exp_tools.io.shutil.disk_usage", lambda _: usage(free, 0, free))


@pytest.mark.parametrize(
    ("archive", "have", "needed"), [(False, 0, 3 * MB), (False, MB, 2 * MB), (True, 0, 6 * MB), (True, MB, 5 * MB)]
)
def test_room_is_asked_for_before_the_first_byte(server, file, store, monkeypatch, archive, have, needed):
    file = dataclasses.replace(file, archive=archive)
    put_part(store, CONTENT[:have])
    pretend_free(monkeypatch, needed - 1)
    with pytest.raises(UserError, match=rf"needs {needed // MB}\.00MB in [^;]*; make room[\s\S]*To bring it by hand"):
        fetch(file, store)
    assert server.log == []
    pretend_free(monkeypatch, needed)
    fetch(file, store)
    assert is_whole(store)


def test_room_for_an_undeclared_size_is_asked_for_when_the_server_tells_it(server, file, store, monkeypatch):
    pretend_free(monkeypatch, BODY.size - 1)
    with pytest.raises(UserError, match=r"needs 3\.00MB"):
        fetch(dataclasses.replace(file, size=None), store)
    assert not (store / "set.zip.part").exists()


def test_a_disk_that_fills_up_keeps_the_part_and_says_so(server, file, store, monkeypatch):
    real_open = Path.open

    def open_on_full_disk(path, *args, **kwargs):
        stream = real_open(path, *args, **kwargs)
        if path.name != "set.zip.part":
            return stream

        class Full:
            def __enter__(self):
                return self

            def __exit__(self, *_):
                stream.close()

            def write(self, chunk):
                if stream.tell() >= MB:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                stream.write(chunk)

        return Full()

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", open_on_full_disk)
        with pytest.raises(UserError, match=r"No space left on device[\s\S]*go(es)? on from there"):
            fetch(file, store)
    have = (store / "set.zip.part").stat().st_size
    assert have >= MB
    fetch(file, store)
    assert is_whole(store)
    assert ranges(server) == [None, f"bytes={have}-"]


def test_a_store_that_cannot_be_made_is_said(server, file, tmp_path):
    (tmp_path / "store").write_text("a file")
    with pytest.raises(UserError, match=r"store: (Not a directory|File exists)"):
        fetch(file, tmp_path / "store")


# --- killed and concurrent processes


def start(file: RemoteFile, store: Path) -> subprocess.Popen:
    # A shell that runs the tests in the background makes its children deaf to Ctrl-C.
    script = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
        f"from pathlib import Path; from exp_tools.data.acquire.fetch import *; fetch({file!r}, Path({str(store)!r}))"
    )
    return subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stderr=subprocess.PIPE, text=True)


def wait_until(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "never happened"
        time.sleep(0.01)


@pytest.mark.parametrize(("blow", "megabytes"), [(signal.SIGKILL, 200), (signal.SIGINT, 4)], ids=["kill -9", "Ctrl-C"])
def test_a_killed_download_continues_where_it_stopped(tmp_path, blow, megabytes):
    big, store = Pattern(megabytes * MB), tmp_path / "store"
    with FileServer({"/big.zip": big}) as server:
        file = RemoteFile("big.zip", server.url("/big.zip"), big.size, big.md5())
        sent = big.size * 6 // 10
        server.script = [Answer(stall=sent)]
        process, part = start(file, store), store / "big.zip.part"
        wait_until(
            lambda: process.poll() is not None or (part.exists() and part.stat().st_size > sent - transfer.CHUNK)
        )
        process.send_signal(blow)
        process.communicate()
        assert process.returncode == -blow
        have = part.stat().st_size
        assert not (store / "big.zip").exists()

        path = fetch(file, store)
        assert ranges(server) == [None, f"bytes={have}-"]
        with path.open("rb") as stream:
            assert all(stream.read(len(block)) == block for block in big.read(0, big.size))
            assert stream.read() == b""


def test_two_processes_bring_one_file_once(server, file, store):
    server.script = [Answer(stall=MB)]
    first = start(file, store)
    wait_until(lambda: (store / "set.zip.part").exists() and (store / "set.zip.part").stat().st_size)
    second = start(file, store)
    assert "another process is at it" in second.stderr.readline()
    assert second.poll() is None
    first.kill()  # its lock dies with it, and the second goes on with what it has left
    first.communicate()
    _, errors = second.communicate(timeout=60)
    assert second.returncode == 0, errors
    assert is_whole(store)
    assert len(server.log) == 2
    assert server.log[1].range is not None


def test_threads_that_want_the_same_file_get_it_once(server, file, store, monkeypatch):
    found, checked, digests_of = [], [], fetch_module.digests_of
    monkeypatch.setattr(fetch_module, "digests_of", lambda path: (checked.append(path.name), digests_of(path))[1])
    threads = [threading.Thread(target=lambda: found.append(fetch(file, store))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [store / "set.zip"] * 4
    assert checked == ["set.zip.part"]
    assert is_whole(store)
    assert len(server.log) == 1
