"""`thumbtune serve` as a process: it says where it listens, drains when told to stop, and refuses what is unsafe."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx
import pytest

from thumbtune.errors import ConfigError
from thumbtune.gateway.rates import Rates
from thumbtune.gateway.settings import GatewaySettings, read_gateway_settings
from thumbtune.store.database import Store
from thumbtune.store.reading import list_votes

COMMAND = [sys.executable, "-m", "thumbtune"]


@contextmanager
def run_serve(folder: Path, *options: str) -> Iterator[tuple[subprocess.Popen, str]]:
    """`thumbtune serve` on a free port; gives the process and its address."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("THUMBTUNE_")}
    process = subprocess.Popen(
        [*COMMAND, "serve", "--port", "0", "--no-page", *options],
        cwd=folder,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process, _read_address(process)
    finally:
        process.kill()
        process.communicate()


def _read_address(process: subprocess.Popen) -> str:
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        with_address = json.loads(line) if line.startswith("{") else {}
        if with_address.get("message") == "listening":
            return str(with_address["address"])
    raise AssertionError("".join(lines))


def ask(http: httpx.Client, text: str, **more: Any) -> dict[str, Any]:
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": 8, **more}
    answer = http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_a_vote_travels_from_a_fresh_folder_to_a_trained_adapter_in_service(
    tmp_path: Path, url: str, tiny_model_path: Path
) -> None:
    """Serve a real (tiny) model, chat, vote, export, check, train, serve the adapter, and go back."""
    with (
        run_serve(tmp_path, "--store", url, "--model", str(tiny_model_path)) as (process, address),
        httpx.Client(base_url=address, timeout=60) as http,
    ):
        base = ask(http, "hello")["model"]
        for number in range(12):
            info = ask(http, f"question {number}", temperature=1.0, seed=number)["thumbtune"]
            press = {
                "completion_id": info["completion_id"],
                "vote_token": info["vote_token"],
                "label": number % 2 == 0,
            }
            assert http.post("/v1/feedback", json=press).json()["status"] == "recorded"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == -signal.SIGTERM, "it ends by the signal, once it has drained"

    def run(*arguments: str) -> str:
        done = subprocess.run([*COMMAND, *arguments], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    exported = json.loads(run("export", "--store", url, "--out", "thumbs.jsonl", "--json"))
    assert (exported["n_rows"], exported["n_up"]) == (12, 6)
    assert json.loads(run("data", "check", "thumbs.jsonl", "--json"))["n_rows"] == 12
    settings = ["--num-train-epochs", "1", "--per-device-train-batch-size", "4", "--logging-steps", "1"]
    run("train", "thumbs.jsonl", "--model", str(tiny_model_path), "--out", "run", *settings)

    with (
        run_serve(tmp_path, "--store", url, "--model", str(tiny_model_path), "--adapter", "run") as (
            _,
            address,
        ),
        httpx.Client(base_url=address, timeout=60) as http,
    ):
        assert ask(http, "hello")["model"] == base, "what was in service stays in service"
        versions = {row["version"]: row for row in http.get("/v1/versions").json()["data"]}
        (adapter,) = versions.keys() - {base}
        assert versions[adapter]["parent"] == base
        assert versions[adapter]["snapshot"] == exported["digest"], (
            "the version knows the votes that it learned from"
        )
        assert versions[base]["n_up"] == 6
        assert http.post("/v1/champion", json={"version": adapter}).status_code == 200
        assert ask(http, "hello")["model"] == adapter
        assert http.post("/v1/champion/back").status_code == 200
        assert ask(http, "hello")["model"] == base


def test_stopping_lets_an_answer_finish_and_its_vote_count(
    tmp_path: Path, url: str, tiny_model_path: Path
) -> None:
    with (
        run_serve(tmp_path, "--store", url, "--model", str(tiny_model_path)) as (process, address),
        httpx.Client(base_url=address, timeout=60) as http,
    ):
        body = {
            "messages": [{"role": "user", "content": "tell"}],
            "stream": True,
            "max_tokens": 300,
            "temperature": 0,
        }
        with http.stream("POST", "/v1/chat/completions", json=body) as stream:
            lines = stream.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            text = "".join(lines)
        assert "vote_token" in text
        assert text.endswith("[DONE]")
        assert process.wait(30) == -signal.SIGTERM, "it ends by the signal, once it has drained"
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{address}/healthz")
    with closing(Store(url)) as store, store.read() as connection:
        rows = connection.exec_driver_sql("SELECT finish_reason FROM completions").all()
    assert [tuple(row) for row in rows] in ([("stop",)], [("length",)])


def test_a_connection_outlives_the_five_seconds_for_which_clients_keep_it(
    tmp_path: Path, tiny_model_path: Path
) -> None:
    with (
        run_serve(tmp_path, "--model", str(tiny_model_path)) as (_, address),
        closing(HTTPConnection(address.removeprefix("http://"))) as connection,
    ):
        connection.connect()
        before = connection.sock
        for rest in (5.5, 0):
            connection.request("GET", "/v1/models")
            assert connection.getresponse().read()
            time.sleep(rest)
        assert connection.sock is before


def test_a_key_made_on_the_command_line_closes_the_open_door(tmp_path: Path, tiny_model_path: Path) -> None:
    with (
        run_serve(tmp_path, "--model", str(tiny_model_path)) as (_, address),
        httpx.Client(base_url=address, timeout=60) as http,
    ):
        assert http.get("/v1/models").status_code == 200
        made = subprocess.run(
            [*COMMAND, "keys", "create", "shop", "--json"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        key = json.loads(made.stdout)
        headers = {"Authorization": f"Bearer {key['secret']}"}
        deadline = time.monotonic() + 5
        while http.get("/v1/models").status_code != 401:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert http.get("/v1/models", headers=headers).status_code == 200
        listed = subprocess.run(
            [*COMMAND, "keys", "list"], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        assert key["id"] in listed.stdout
        assert key["secret"] not in listed.stdout
        subprocess.run([*COMMAND, "keys", "revoke", key["id"]], cwd=tmp_path, capture_output=True, check=True)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "name a model"),
        (["--model", "x", "--upstream", "http://y", "--adapter", "z"], "adapters go with --model"),
        (["--upstream", "http://127.0.0.1:9/v1", "--host", "0.0.0.0"], "no API key yet"),
        (["--upstream", "http://127.0.0.1:9/v1"], "cannot be reached"),
        (["--model", "./nowhere"], "no such folder"),
        (["--config", "nowhere.toml"], "no such file"),
    ],
)
def test_what_cannot_be_served_is_said_in_one_line(tmp_path: Path, options: list[str], says: str) -> None:
    done = subprocess.run(
        [*COMMAND, "serve", "--no-page", "--port", "0", *options],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_options_come_before_the_environment_and_that_before_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text('port = 1\nhost = "127.0.0.2"\nuser_votes = "5/minute"\n')
    monkeypatch.setenv("THUMBTUNE_PORT", "2")
    monkeypatch.setenv("THUMBTUNE_ALLOWED_ORIGINS", '["https://shop.example"]')
    settings = read_gateway_settings(file, port=3)
    assert (settings.port, settings.host, settings.user_votes) == (3, "127.0.0.2", "5/minute")
    assert settings.allowed_origins == ["https://shop.example"]
    assert read_gateway_settings(file).port == 2
    assert read_gateway_settings(file, port=None).port == 2


@pytest.mark.parametrize(
    ("content", "says"),
    [("prot = 1", "prot"), ('port = "many"', "port"), ("port = 70000", "port"), ("port =", "gateway")],
)
def test_a_wrong_settings_file_is_refused_by_name(tmp_path: Path, content: str, says: str) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=says):
        read_gateway_settings(file)


def test_the_page_of_settings_is_up_to_date() -> None:
    script = Path(__file__).parents[2] / "scripts" / "document_settings.py"
    spec = importlib.util.spec_from_file_location("document_settings", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text(encoding="utf-8") == module.render(), "run scripts/document_settings.py"


def test_a_rate_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(ConfigError, match="write it as 60/minute"):
        Rates(GatewaySettings(user_votes="often"))


def test_show_settings_hides_what_is_secret(tmp_path: Path) -> None:
    environment = dict(
        os.environ, THUMBTUNE_UPSTREAM_KEY="sk-hush", THUMBTUNE_STORE="postgresql://a:hush2@h/d"
    )
    done = subprocess.run(
        [*COMMAND, "serve", "--show-settings"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "hush" not in done.stdout
    assert json.loads(done.stdout)["port"] == 8400


def test_votes_of_before_are_there_after_a_restart(tmp_path: Path, url: str, tiny_model_path: Path) -> None:
    for round_ in range(2):
        with (
            run_serve(tmp_path, "--store", url, "--model", str(tiny_model_path)) as (process, address),
            httpx.Client(base_url=address, timeout=60) as http,
        ):
            info = ask(http, "hello")["thumbtune"]
            token = {"completion_id": info["completion_id"], "vote_token": info["vote_token"]}
            http.post("/v1/feedback", json=token | {"label": True})
            process.kill()
        with closing(Store(url)) as store:
            assert len(list_votes(store)) == round_ + 1
