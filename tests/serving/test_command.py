"""`llmlab serve` as a person starts it, and what it refuses before a model is loaded."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading

import openai
import pytest

from llmlab.cli.serve import refuse_without_packages
from llmlab.config.loading import LoadOptions
from llmlab.config.serving import ServeOptions
from llmlab.endpoint import API_KEY
from llmlab.errors import LabError
from llmlab.models.resolve import ModelRef, resolve_model
from llmlab.serving import vllm
from llmlab.serving.keys import find_key, is_own_machine, refuse_open
from llmlab.serving.listening import address_of, bound_socket
from llmlab.trust import redact
from tests.conftest import llmlab
from tests.waiting import PATIENCE


@contextlib.contextmanager
def started(folder, cwd, *options, **environment):
    process = subprocess.Popen(
        [sys.executable, "-m", "llmlab", "serve", str(folder), "--port", "0", *options],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", **environment},
    )
    try:
        address = process.stdout.readline().strip()
        assert address.startswith("http://127.0.0.1:"), process.stderr.read()
        yield process, address
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_a_template_that_never_ends_and_ctrl_c_in_the_middle_of_an_answer(chat_folder, tmp_path):
    key = "a-key-that-is-long-enough"
    (tmp_path / ".env").write_text(f"{API_KEY}={key}\n")
    folder = shutil.copytree(chat_folder, tmp_path / "model")
    spin = "{% if messages[-1].content == 'spin' %}"
    spin += "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}{% endif %}"
    template = folder / "chat_template.jinja"
    template.write_text(spin + template.read_text())
    name = str(folder)
    with started(folder, tmp_path, "--set", "max_new_tokens=70") as (process, address):
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=address, api_key="other", max_retries=0).models.list()
        client = openai.OpenAI(base_url=address, api_key=key, max_retries=0)
        assert client.models.list().data[0].id == name
        with pytest.raises(openai.BadRequestError, match="this chat template ran for 1 s and was stopped"):
            client.chat.completions.create(model=name, messages=[{"role": "user", "content": "spin"}])
        failures = []

        def ask():
            try:
                for _ in range(1000):
                    text = [{"role": "user", "content": "Call me Ishmael"}]
                    list(client.chat.completions.create(model=name, messages=text, stream=True))
            except openai.APIError as error:
                failures.append(error)

        askers = [threading.Thread(target=ask) for _ in range(3)]
        for asker in askers:
            asker.start()
        client.chat.completions.create(model=name, messages=[{"role": "user", "content": "hi"}])
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE)
        for asker in askers:
            asker.join(PATIENCE)
        assert process.returncode == 130 and "Traceback" not in err
        assert "requests bring the API key" in err and key not in out + err and "Ishmael" not in out + err
        assert len(failures) == 3, "an answer that was cut is not told as a whole one"


def test_a_port_in_use():
    with bound_socket("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(LabError, match=f"port {port} is in use"):
            bound_socket("127.0.0.1", port)


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments, message",
    [
        (["m", "--host", "0.0.0.0"], "that needs an API key: set LLMLAB_API_KEY"),
        (["no/such/model"], "there is no such checkpoint"),
        (["m", "--port", "70000"], "`port` 70000 must be at most 65535"),
        (["m", "--engine", "vllm"], "vLLM is not installed"),
        (["m", "--port", "PORT"], "is in use: end the program there, or choose another with --port"),
    ],
)
def test_what_is_refused_is_one_message(chat_folder, tmp_path, arguments, message):
    with bound_socket("127.0.0.1", 0) as taken:
        taken.listen()
        values = {"m": str(chat_folder), "PORT": str(taken.getsockname()[1])}
        result = llmlab("serve", *(values.get(one, one) for one in arguments), cwd=tmp_path)
    assert result.returncode == 2 and message in result.stderr and not result.stdout
    assert result.stderr.count("error:") == 1 and "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "host, message",
    [
        ("no such host", "is no address"),
        ("203.0.113.7", "is no address of this machine"),
        ("a" * 70, "no addr"),
    ],
)
def test_an_address_that_is_none(host, message):
    with pytest.raises(LabError, match=message):
        bound_socket(host, 0)


def test_both_families_of_addresses():
    for host in ("127.0.0.1", "localhost", "0.0.0.0", *(["::1"] if socket.has_ipv6 else [])):
        with contextlib.suppress(LabError), bound_socket(host, 0) as listening:
            assert address_of(listening).startswith(("http://127.0.0.1:", "http://[::1]:"))


def test_where_the_key_comes_from(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(API_KEY, raising=False)
    assert find_key() == ""
    (tmp_path / ".env").write_text(
        f"OTHER=1\nexport {API_KEY} = 'from the file' # no\n{API_KEY}='of-the-file'\n"
    )
    assert find_key() == "of-the-file"
    monkeypatch.setenv(API_KEY, "of-the-environment")
    assert find_key() == "of-the-environment"
    (tmp_path / "key").write_text("of-its-own-file\n")
    assert find_key(tmp_path / "key") == "of-its-own-file"
    assert redact("say of-its-own-file") == f"say <{API_KEY} of a file>"
    for content, message in (
        ("short", "fewer than 8"),
        ("", "holds no API key"),
        ("wörter " * 3, "no header"),
    ):
        (tmp_path / "key").write_text(content)
        with pytest.raises(LabError, match=message):
            find_key(tmp_path / "key")
    with pytest.raises(LabError, match="cannot be read"):
        find_key(tmp_path / "gone")


def test_who_can_reach_an_address():
    own = ["127.0.0.1", "localhost", "::1", "[::1]", "127.8.9.1"]
    assert all(is_own_machine(host) for host in own)
    others = ["0.0.0.0", "::", "192.168.0.4", "example.org", "", "127.0.0.1.example.org", "localhost.evil"]
    assert not any(is_own_machine(host) for host in others)
    refuse_open("0.0.0.0", "a-long-key")
    with pytest.raises(LabError, match="needs an API key"):
        refuse_open("0.0.0.0", "")


def test_vllm_is_started_with_the_same_options(chat_folder, tmp_path, monkeypatch):
    """The command alone: vLLM needs a GPU."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    native = tmp_path / "llama"
    native.mkdir()
    (native / "config.json").write_text('{"model_type": "llama"}')
    ref = resolve_model(str(native))
    assert not vllm.why_not(ref, LoadOptions(), changed=False)
    for other, load, changed, message in (
        (resolve_model(str(chat_folder)), LoadOptions(), False, "does not know this architecture"),
        (ModelRef("a", "a", "adapter"), LoadOptions(), False, "not with adapters or GGUF files"),
        (ref, LoadOptions(load_in="8bit"), False, "quantises to 4 bit"),
        (ref, LoadOptions(device="cpu"), False, "on a GPU"),
        (ref, LoadOptions(), True, "takes the settings of an answer from the request"),
    ):
        assert message in vllm.why_not(other, load, changed=changed)
    options = ServeOptions(host="0.0.0.0", port=9)
    line = " ".join(vllm.command(ref, LoadOptions(load_in="4bit", dtype="bf16"), options, "mine"))
    for part in (f"--model {native}", "--served-model-name mine", "--host 0.0.0.0 --port 9"):
        assert part in line
    assert "--dtype bfloat16" in line and "--quantization bitsandbytes" in line


def test_the_engine_gets_the_key_from_the_environment_alone(tmp_path):
    code = "import os, sys; sys.exit(0 if os.environ['VLLM_API_KEY'] == 'secret-key' else 3)"
    assert vllm.run([sys.executable, "-c", code], "secret-key") == 0


def test_a_missing_package_is_one_message(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(LabError, match="serving needs fastapi and uvicorn: pip install fastapi uvicorn"):
        refuse_without_packages()
