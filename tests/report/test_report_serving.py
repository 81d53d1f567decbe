"""The report is served to this machine alone, and made anew when the run has come further."""

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from influcoder_ray.errors import UserError
from influcoder_ray.report import serving
from influcoder_ray.report.progress import progress_page
from influcoder_ray.report.render import render_page
from influcoder_ray.report.wording import MISSING
from influcoder_ray.tables.progress import StageProgress


class Counted:
    """A source that says how often its page was made."""

    def __init__(self) -> None:
        self.state = "first"
        self.made = 0
        self.trouble: UserError | None = None

    def key(self) -> str:
        return self.state

    def html(self) -> str:
        if self.trouble:
            raise self.trouble
        self.made += 1
        return f"<p>{self.state}</p>"


@contextmanager
def _served(source: serving.Source) -> Iterator[int]:
    with serving._server(source, 0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def _ask(
    port: int, path: str = "/", method: str = "GET", host: str | None = None
) -> tuple[int, str, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request(method, path, headers={"Host": host} if host else {})
    answer = connection.getresponse()
    found = answer.status, answer.read().decode(), {name.lower(): it for name, it in answer.getheaders()}
    connection.close()
    return found


def test_the_page_is_made_anew_when_the_run_has_come_further_and_not_before() -> None:
    """Prevents a stale page, and seconds of rendering for every look at one that has not changed."""
    source = Counted()
    with _served(source) as port:
        assert [_ask(port)[1] for _ in range(3)] == ["<p>first</p>"] * 3
        assert source.made == 1
        source.state = "second"
        assert _ask(port, "/report.html?x")[1] == "<p>second</p>"
        assert source.made == 2


def test_it_listens_on_loopback_and_answers_to_its_own_name_alone() -> None:
    """Prevents a report from being read by the network, or by a page that points a name at this machine."""
    with _served(Counted()) as port:
        assert _ask(port, host=f"localhost:{port}")[0] == 200
        for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "0.0.0.0"):
            assert _ask(port, host=host)[0] == 421
    with serving._server(Counted(), 0) as server:
        assert server.server_address[0] == "127.0.0.1"


def test_there_is_one_page_and_nothing_else() -> None:
    """Prevents the folder that the report was made of from being read through the server."""
    with _served(Counted()) as port:
        for path in ("/settings.yaml", "/../etc/passwd", "/%2e%2e/x", "//etc/passwd"):
            assert _ask(port, path)[0] == 404
        status, body, headers = _ask(port, method="HEAD")
        assert (status, body, headers["content-length"]) == (200, "", str(len("<p>first</p>")))
        assert headers["cache-control"] == "no-store"
        assert _ask(port, method="POST")[0] == 501


def test_what_a_user_can_mend_is_told_in_one_line() -> None:
    """Prevents an empty answer, and a server that ends, when a corpus was moved while it ran."""
    source = Counted()
    source.trouble = UserError("corpus.path: /data does not exist")
    with _served(source) as port:
        assert _ask(port)[:2] == (503, "corpus.path: /data does not exist\n")
        source.trouble = None
        assert _ask(port)[0] == 200


def test_a_port_that_is_taken_is_refused_in_one_line() -> None:
    """Prevents a traceback where a person has two of them open."""
    with serving._server(Counted(), 0) as server:
        port = server.server_address[1]
        with pytest.raises(
            UserError, match=rf"--port: {port} on 127\.0\.0\.1 cannot be had .*in use.*; give"
        ):
            serving.serve(Counted(), port, print)


def test_ctrl_c_ends_it_without_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents the one way to end it from looking like a failure."""
    told: list[str] = []

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(serving.ThreadingHTTPServer, "serve_forever", interrupted)
    serving.serve(Counted(), 0, told.append)
    assert told[0].startswith("http://127.0.0.1:")


def _stages() -> list[StageProgress]:
    return [
        StageProgress("sample", True, True, 2, 1200, 3, 4.0),
        StageProgress("sketch", True, False, 5, 640, 0, None),
        StageProgress("distill", False, False, 0, 0, 0, None),
    ]


@pytest.mark.parametrize("title", ["A run", "<script>alert(1)</script>"])
def test_the_progress_page_says_what_is_done_and_loads_itself_again(
    title: str, plain: Callable[[str], str]
) -> None:
    """Prevents an empty page for as long as the run goes on, or one that stands still."""
    page = render_page(progress_page(title, "/data/run", _stages(), unchanged_seconds=75))
    text = plain(page)
    for words in (
        "The run in /data/run goes on.",
        "1 of 3 stages are done",
        "sample done 4.0 s 2 1,200 3",
        f"sketch under way {MISSING} 5 640 0",
        f"distill waiting {MISSING} {MISSING} {MISSING} {MISSING}",
        "Nothing new has been seen for 1 min 15 s",
    ):
        assert words in text, words
    assert '<meta http-equiv="refresh" content="5">' in page
    assert "<script" not in page
    assert "script-src" not in page


def test_why_there_is_no_report_is_told(plain: Callable[[str], str]) -> None:
    """Prevents a person from waiting for a report that a moved corpus keeps away."""
    page = progress_page("A run", "run", _stages()[:1], unchanged_seconds=0, trouble="corpus.path: <gone>")
    assert "corpus.path: <gone>" in plain(render_page(page))
