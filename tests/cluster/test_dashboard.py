"""Commands on a run's jobs where Ray's dashboard fails, over real HTTP; and where a run goes on as
a later attempt, or cannot go on.
"""

import argparse
import contextlib

import pytest

from tests.cluster.dashboard import dashboard
from vtx_scale.cluster.jobs import Jobs, Silent
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.launch import attempts, follow, jobs, submit_job
from vtx_scale.launch.attempts import Attempt, End
from vtx_scale.launch.submit_job import Wanted

CODE = "code-0.zip"


@pytest.fixture
def board(monkeypatch):
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setattr(jobs, "WATCH", 0.0)
    monkeypatch.setattr(follow, "POLL", 0.0)
    monkeypatch.setattr(follow, "ASK_RAY", 0.0)
    monkeypatch.setattr(follow, "LEFT", 0.0)
    with dashboard() as board:
        yield board


@pytest.fixture
def night(tmp_path):
    """A run folder."""
    (tmp_path / "night").mkdir()
    return tmp_path / "night"


def submitted(folder, board, number=1, began=0.0) -> Attempt:
    """An attempt of a run, long ago unless that is said."""
    attempt = Attempt(number, f"night-{number}", board.address, began, {}, CODE)
    assert attempts.claim(folder, attempt)
    (folder / "jobs" / CODE).write_bytes(b"PK")
    return attempt


GIVEN = argparse.Namespace(address="", json=False, follow=False)


ENOUGH = "the loop goes round and round"


def turns(monkeypatch, module, steps) -> None:
    """What happens between two looks of a loop; then it is left."""
    coming = iter(steps)

    def sleep(seconds: float) -> None:
        step = next(coming, None)
        if step is None:
            raise AssertionError(ENOUGH)
        step()

    monkeypatch.setattr(module.time, "sleep", sleep)


@pytest.mark.parametrize("status", [500, 502, 503])
def test_a_dashboard_that_fails_is_silent_and_one_that_refuses_is_not(board, status):
    client = Jobs(board.address)
    board.status = status
    for ask in (lambda: client.look("night-1"), client.listed, lambda: client.stop("night-1")):
        with pytest.raises(UserError) as error:
            ask()
        assert isinstance(error.value, Silent), error.value
        assert f"cannot answer now (HTTP {status}: " in str(error.value)
        assert "GCS is unavailable" in str(error.value)
    board.body = "<html>\n<body>Bad gateway</body>\n</html>"
    with pytest.raises(Silent, match=rf"cannot answer now \(HTTP {status}\)\.$"):
        client.look("night-1")
    for refused in (401, 403, 400):
        board.status = refused
        with pytest.raises(UserError) as error:
            client.look("night-1")
        assert not isinstance(error.value, Silent)
    board.status = 404
    assert client.look("night-1").status == "UNKNOWN"


def test_a_supervisor_waits_for_a_dashboard_that_fails(board, night, monkeypatch, capsys):
    """Four looks; then the dashboard is back, and says that the job is gone."""
    attempt = submitted(night, board)
    board.status = 500

    def back() -> None:
        board.status = 0

    def end() -> None:
        board.jobs["night-2"] = "SUCCEEDED"
        attempts.write_end(night, 2, End(0, "", 90))

    nothing = [lambda: None] * 4
    turns(monkeypatch, jobs, [*nothing, back, *nothing[:2], end, *nothing])
    assert jobs.supervise(GIVEN, night, attempt) == 0
    heard = capsys.readouterr().err.splitlines()
    assert heard[0] == "watching night-1"
    assert [line for line in heard if "Asking again" in line] == heard[1:2]
    assert "HTTP 500" in heard[1] and heard[2] == "the dashboard answers again"
    assert heard[3] == "job night-1: lost without a word"
    assert heard[4] == "job night-2 was submitted; the run goes on from step 0"
    assert heard[5] == f"{night}: finished at step 90" and len(heard) == 6


def test_status_and_logs_go_by_the_run_folder_where_a_dashboard_fails(board, night, capsys):
    attempt = submitted(night, board)
    (night / "log.txt").write_text("step 1\n")
    board.status = 503
    assert jobs.status(GIVEN, night, attempt) == 0
    heard = capsys.readouterr()
    assert "night-1: unknown: nobody holds its run folder" in heard.out
    assert "(HTTP 503: " in heard.err and "What follows is the run folder's word" in heard.err
    attempts.write_end(night, 1, End(0, "", 90))
    assert jobs.status(GIVEN, night, attempt) == 0
    assert "night-1: finished at step 90" in capsys.readouterr().out
    following = argparse.Namespace(address="", json=False, follow=True)
    assert jobs.logs(following, night, attempt) == 0
    assert capsys.readouterr().out == "step 1\n"


def test_a_supervisor_ends_where_a_run_cannot_go_on(board, night, monkeypatch, capsys):
    attempt = submitted(night, board)
    (night / "jobs" / CODE).unlink()
    turns(monkeypatch, jobs, [lambda: None] * 5)
    with pytest.raises(UserError, match=rf"{CODE} is gone"):
        jobs.supervise(GIVEN, night, attempt)
    heard = capsys.readouterr().err
    assert "job night-1: lost without a word" in heard and "goes on" not in heard
    assert attempts.numbers(night) == [1]


def test_a_supervisor_leaves_the_job_alone_on_ctrl_c(board, night, monkeypatch, capsys):
    attempt = submitted(night, board)
    board.jobs["night-1"] = "RUNNING"

    def interrupt() -> None:
        raise KeyboardInterrupt

    turns(monkeypatch, jobs, [interrupt])
    assert jobs.supervise(GIVEN, night, attempt) == 130
    assert "job night-1 goes on" in capsys.readouterr().err
    assert not attempts.stop_asked(night, 1)


@pytest.mark.parametrize("code", [0, 75, 2])
def test_who_looks_on_follows_the_attempt_that_a_run_goes_on_as(
    board, night, monkeypatch, capsys, code
):
    """The lease is held all along, by the first attempt and then by the second."""
    attempt = submitted(night, board)
    board.jobs["night-1"] = "FAILED"
    held = attempts.Holder("held", "process 7 on n1")
    monkeypatch.setattr(attempts, "holder_of", lambda folder: held)
    lines = night / "log.txt"
    lines.write_text("step 1\n")

    def resumed() -> None:
        submitted(night, board, 2)
        board.jobs["night-2"] = "RUNNING"

    def step() -> None:
        with lines.open("a") as file:
            file.write("step 2\n")

    nothing = lambda: None  # noqa: E731
    over = lambda: attempts.write_end(night, 2, End(code, "", 9))  # noqa: E731
    turns(monkeypatch, follow, [nothing, nothing, resumed, step, nothing, over, nothing])
    written: list[str] = []
    assert follow.follow(night, attempt, Jobs(board.address), written.append) == code
    heard = capsys.readouterr().err
    assert (
        "gone without a word: the run goes on as night-2" in heard
        and "resume" not in heard.split("night-2")[0]
    )
    assert written == ["step 2"]


def test_a_job_of_which_nobody_knows_is_not_lost(board, night, monkeypatch, capsys):
    """It waits for a node while its dashboard is away: nothing is started beside it, a request to
    leave stays, and who looks on asks again.
    """
    attempt = submitted(night, board)
    client, board.status = Jobs(board.address), 500
    found = follow.look(night, attempt, client)
    assert found.state == "unknown" and not found.alive and not found.over
    with pytest.raises(Silent, match="Nothing was submitted: job night-1 is unknown"):
        submit_job.begin(night, client, lambda: pytest.fail("it was begun"))
    turns(monkeypatch, jobs, [lambda: None] * 9)
    with pytest.raises(AssertionError, match=ENOUGH):
        jobs.supervise(GIVEN, night, attempt)
    assert attempts.numbers(night) == [1]
    with pytest.raises(AssertionError, match=ENOUGH):
        follow.follow(night, attempt, client, print)
    assert capsys.readouterr().err.count("night-1 is unknown") == 1
    assert jobs.stop(GIVEN, night, attempt) == 0
    assert (night / "control" / "stop").is_file() and attempts.stop_asked(night, 1)
    heard = capsys.readouterr().err
    assert "control/stop stays there" in heard and "alive" not in heard
    assert jobs.supervise(GIVEN, night, attempt) == 75  # stopped: nobody is to go on with it


WANTED = Wanted({}, b"PK", [], None, False)


def test_a_submission_whose_answer_is_lost_is_asked_after(board, night):
    client = Jobs(board.address)
    board.status, board.loses = 504, True
    with contextlib.suppress(Silent):
        submit_job.begin(night, client, lambda: WANTED)
    assert attempts.newest(night).id == "night-1" and board.jobs == {"night-1": "PENDING"}
    assert attempts.end_of(night, 1) is None


def test_a_submission_of_which_nobody_knows_has_no_end(board, night):
    """Its job may have begun: it is unknown until the dashboard is back."""
    client, board.status = Jobs(board.address), 504
    attempt = Attempt(1, "night-1", board.address, 0.0, {}, CODE)
    assert attempts.claim(night, attempt)
    with pytest.raises(Silent, match="HTTP 504"):
        submit_job.hand_over(night, attempt, client, b"PK")
    assert attempts.end_of(night, 1) is None
    assert follow.look(night, attempt, client).state == "unknown"


def test_a_submission_that_failed_says_so_though_its_end_cannot_be_written(
    board, night, monkeypatch
):
    client = Jobs(board.address)

    def lose(*about: object) -> None:
        raise Silent("The answer was lost.")

    monkeypatch.setattr(client, "submit", lose)
    begin = lambda: submit_job.begin(night, client, lambda: WANTED)  # noqa: E731
    with pytest.raises(Silent, match="The answer was lost"):
        begin()
    end = attempts.end_of(night, 1)
    assert end.code == 1 and end.text == "could not be submitted: The answer was lost."

    def full(*about: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(attempts, "write_end", full)
    with pytest.raises(Silent, match="The answer was lost"):
        begin()
