"""The server behind OpenAI's own client: the answers are those of `generate`; what cannot be done is said."""

import json
import time
from concurrent.futures import ThreadPoolExecutor

import httpx2
import openai
import pytest

from llmlab.chat.generation import stream
from llmlab.config.chat import ChatSettings
from llmlab.data.rendering import render
from llmlab.models.dual_head import LabDualHeadConfig, LabDualHeadForCausalLM
from llmlab.models.load import load_model
from tests.serving.conftest import SETTINGS, serving
from tests.waiting import until

ASKED = "Call me Ishmael"


def turn(text, role="user"):
    return {"role": role, "content": text}


def alone(server, text, settings=SETTINGS, chats=True):
    """What the model says when nobody else is there."""
    engine = server.engine
    prompt = render(engine.tokenizer, [turn(text)], generate=True) if chats else text
    return "".join(stream(engine.model, engine.tokenizer, prompt, settings))


def chat(server, text=ASKED, **options):
    return server.client().chat.completions.create(model="lab", messages=[turn(text)], **options)


def content(chunks):
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)


def test_it_names_its_model(running):
    [model] = running.client().models.list().data
    assert (model.id, model.owned_by) == ("lab", "llmlab")
    assert running.client().models.retrieve("lab").id == "lab"
    assert httpx2.get(f"{running.address}/health").json() == {"status": "ok"}


def test_an_answer_is_that_of_generate(running):
    answer = chat(running)
    assert answer.choices[0].message.content == alone(running, ASKED)
    assert answer.choices[0].finish_reason == "length" and answer.usage.completion_tokens == 16
    prompt = render(running.engine.tokenizer, [turn(ASKED)], generate=True)
    assert answer.usage.prompt_tokens == len(running.engine.tokenizer(prompt)["input_ids"])


def test_a_stream_says_the_same_piece_by_piece(running):
    chunks = list(chat(running, stream=True, stream_options={"include_usage": True}))
    assert content(chunks) == alone(running, ASKED) and len(chunks) > 5
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert chunks[-1].usage.completion_tokens == 16 and not chunks[-1].choices


def test_texts_are_continued(running):
    made = running.client().completions.create(model="lab", prompt=[ASKED, "The"], max_tokens=7)
    settings = SETTINGS.model_copy(update={"max_new_tokens": 7})
    assert [choice.text for choice in made.choices] == [
        alone(running, text, settings, chats=False) for text in (ASKED, "The")
    ]
    chunks = running.client().completions.create(model="lab", prompt=ASKED, max_tokens=7, stream=True)
    assert "".join(c.choices[0].text for c in chunks) == made.choices[0].text


def test_options_are_honoured(running):
    options = dict(temperature=1.0, top_p=0.9, seed=11, extra_body={"top_k": 20, "repetition_penalty": 1.2})
    settings = ChatSettings(
        temperature=1.0, top_p=0.9, seed=11, top_k=20, repetition_penalty=1.2, max_new_tokens=9
    )
    said = chat(running, max_completion_tokens=9, **options).choices[0].message.content
    assert said == alone(running, ASKED, settings) != alone(running, ASKED)[: len(said)]
    assert chat(running, temperature=1.0).choices[0].message.content != alone(running, ASKED), "it draws"


@pytest.mark.parametrize("streams", [False, True])
def test_it_stops_at_a_text_and_leaves_it_out(running, streams):
    whole = alone(running, ASKED)
    stop = whole[6:9]
    before = whole[: whole.find(stop)]
    made = chat(running, stop=["never said", stop], stream=streams)
    if streams:
        chunks = list(made)
        assert content(chunks) == before and chunks[-1].choices[0].finish_reason == "stop"
    else:
        assert made.choices[0].message.content == before and made.choices[0].finish_reason == "stop"
        assert made.usage.completion_tokens < 16, "the model stopped there"


def test_it_stops_at_the_end_of_a_turn(running, monkeypatch):
    model, tokenizer = running.engine.model, running.engine.tokenizer
    ids = tokenizer(render(tokenizer, [turn(ASKED)], generate=True), return_tensors="pt")["input_ids"]
    said = model.generate(ids, do_sample=False, max_new_tokens=16)[0, ids.shape[1] :].tolist()
    monkeypatch.setattr(model.generation_config, "eos_token_id", [said[4]])
    answer = chat(running)
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens == said.index(said[4]) + 1
    assert answer.choices[0].message.content == tokenizer.decode(said[: said.index(said[4])])


@pytest.mark.slow
def test_many_at_once_do_not_mix(running):
    client = running.client()
    drawn = dict(temperature=1.0, top_p=1.0)
    jobs = [(f"{word} {seed}", seed) for word in ("The whale", "Ahab", "a b c") for seed in range(8)]

    def ask(job):
        text, seed = job
        options = dict(drawn, seed=seed) if seed else {}
        made = client.chat.completions.create(model="lab", messages=[turn(text)], **options)
        return made.choices[0].message.content

    with ThreadPoolExecutor(8) as pool:
        said = list(pool.map(ask, jobs))
    assert said == [
        alone(running, text, SETTINGS.model_copy(update=dict(drawn, seed=seed)) if seed else SETTINGS)
        for text, seed in jobs
    ]


@pytest.fixture
def slow(running):
    """Every pass of the model takes a moment; the passes so far."""
    passes = []

    def wait(*_):
        passes.append(1)
        time.sleep(0.02)

    hook = running.engine.model.register_forward_hook(wait)
    yield passes
    hook.remove()


def test_a_cancelled_stream_stops_the_model(running, slow):
    chunks = chat(running, stream=True, max_tokens=60)
    for _ in range(3):
        next(chunks)
    chunks.close()
    until(lambda: not running.engine.busy)
    assert 0 < len(slow) < 40
    assert chat(running, max_tokens=2).choices[0].finish_reason == "length", "the next one is answered"


def test_an_answer_that_nobody_waits_for_stops_the_model(running, slow):
    with pytest.raises(openai.APITimeoutError):
        running.client(timeout=0.3).chat.completions.create(
            model="lab", messages=[turn(ASKED)], max_tokens=60
        )
    until(lambda: not running.engine.busy)
    assert 0 < len(slow) < 50


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(n=2), "`n` 2 is not one of 1"),
        (dict(logprobs=True), "`logprobs` True is not"),
        (dict(frequency_penalty=0.5), "`frequency_penalty` 0.5 must be at most 0"),
        (dict(response_format={"type": "json_object"}), "response_format"),
        (dict(temperature="hot"), "`temperature`"),
        (dict(max_tokens=0), "`max_tokens` 0 must be at least 1"),
        (dict(stop=["x"] * 17), "`stop` holds more than 16 texts"),
        (dict(extra_body={"alignment": 1.5}), "`alignment` is for dual heads: this model has none"),
        (dict(extra_body={"chat_template": "x"}), "unknown option `chat_template`"),
        (dict(messages=[]), "`messages` does not end with a message of the user"),
        (dict(messages=[turn("hi", "assistant")]), "`messages` does not end with a message of the user"),
        (dict(messages=[{"role": "user"}]), "a turn of 'user' has no text"),
        (dict(messages=[turn([{"type": "image_url", "image_url": {}}])]), "only text can be read"),
        (dict(messages=[{**turn("hi"), "audio": {"id": "a"}}]), "a message holds `audio`"),
        (dict(stream_options={"include_obfuscation": True}), "`stream_options"),
        (dict(tools=[{"type": "function", "function": {"name": "f"}}]), "leaves out the `tools`"),
        (dict(messages=[turn("\0")]), "NUL"),
    ],
)
def test_what_cannot_be_honoured_is_refused(running, options, message):
    values = {"model": "lab", "messages": [turn("hi")], **options}
    with pytest.raises(openai.BadRequestError) as caught:
        running.client().chat.completions.create(**values)
    assert message in caught.value.body["message"] and caught.value.status_code == 400


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("text", ["x " * 500, "\U0001f40b" * 5000])
def test_too_long_a_prompt_is_refused(running, streams, text):
    with pytest.raises(openai.BadRequestError, match="and the model reads 96 with its answer") as caught:
        chat(running, text, stream=streams)
    assert caught.value.code == "context_length_exceeded"


def test_an_answer_ends_where_the_positions_do(running):
    answer = chat(running, max_tokens=10_000)
    assert answer.usage.total_tokens == 96 and answer.choices[0].finish_reason == "length"


@pytest.mark.parametrize(
    "body, status, message",
    [
        (b"{nope", 400, "the request is not valid JSON (Expecting property name"),
        (b"", 400, "the request is not valid JSON"),
        (b"\xff", 400, "the request is not UTF-8 text"),
        (b"[1]", 400, "the request is a list, not a JSON object"),
        (b'{"messages": []}', 400, "`model` is missing"),
        (b'{"model": "lab", "messages": 3}', 400, "`messages` 3 (int) is not a list"),
        (b"[" * 100_000, 400, "no JSON that can be read"),
        (b'{"model": "gpt-4", "messages": []}', 404, "there is no model 'gpt-4' here; this server has 'lab'"),
        (b'{"model": "/etc", "messages": []}', 404, "there is no model '/etc' here"),
        (b" " * 10_000_001, 413, "more than 10,000,000 bytes"),
    ],
)
def test_a_request_of_another_form_gets_one_message(running, body, status, message):
    answer = httpx2.post(f"{running.address}/v1/chat/completions", content=body)
    assert answer.status_code == status and message in answer.json()["error"]["message"]
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_other_addresses_and_methods(running):
    for path in ("/", "/v1/embeddings", "/docs", "/openapi.json", "/load_model"):
        answer = httpx2.post(f"{running.address}{path}", json={"model": "lab"})
        assert answer.status_code == 404 and answer.json()["error"]["type"] == "not_found_error"
    assert httpx2.get(f"{running.address}/v1/chat/completions").status_code == 405


def test_a_page_of_the_web_does_not_reach_it_under_another_name(running):
    for host, status in (("evil.example", 403), ("localhost:1", 200), ("[::1]:8000", 200)):
        answer = httpx2.get(f"{running.address}/v1/models", headers={"Host": host})
        assert answer.status_code == status, host


def test_a_key_is_asked_for(chat_folder):
    with serving(chat_folder, key="open sesame, says Ali"[:12].replace(" ", "-")) as server:
        assert server.client("open-sesame,").models.list().data[0].id == "lab"
        for key, message in (("wrong", "wrong API key"), ("open-sesame", "wrong API key")):
            with pytest.raises(openai.AuthenticationError, match=message):
                server.client(key).models.list()
        bare = httpx2.post(f"{server.address}/v1/chat/completions", content=b"{")
        assert bare.status_code == 401 and bare.json()["error"]["message"] == "no API key was given"
        assert httpx2.get(f"{server.address}/v1/models", headers={"Host": "a.b"}).status_code == 401
        assert httpx2.get(f"{server.address}/health").status_code == 200


def test_nothing_of_a_conversation_is_printed(running, capfd, monkeypatch, caplog):
    secret = "Queequeg sleeps"
    chat(running, secret)
    with pytest.raises(openai.BadRequestError):
        chat(running, secret, n=2)

    def fails(*_, **__):
        raise RuntimeError(f"cannot take {secret}")

    with monkeypatch.context() as patched:
        patched.setattr(running.engine.model, "generate", fails)
        with pytest.raises(openai.InternalServerError, match="the model failed while it answered") as caught:
            chat(running, secret)
        [*chunks] = httpx2.post(
            f"{running.address}/v1/chat/completions",
            json={"model": "lab", "messages": [turn(secret)], "stream": True},
        ).text.split("\n\n")
        assert json.loads(chunks[-3][6:])["error"]["message"] == "the model failed while it answered"
        patched.setattr(type(running.engine), "turns", fails)
        with pytest.raises(openai.InternalServerError, match="the server failed"):
            chat(running, secret)
    out, err = capfd.readouterr()
    assert secret not in out + err + caplog.text + str(caught.value)
    assert "error: RuntimeError in test_serving.py" in err
    assert chat(running).choices[0].message.content == alone(running, ASKED), "it goes on"


def test_a_base_model_continues_texts_alone(untrained, tmp_path):
    folder = untrained("base")
    (folder / "chat_template.jinja").unlink()
    with serving(folder) as server:
        made = server.client().completions.create(model="lab", prompt=ASKED)
        assert made.choices[0].text == alone(server, ASKED, chats=False)
        with pytest.raises(openai.BadRequestError, match="a base model without a chat template"):
            chat(server)


def test_the_alignment_of_a_dual_head_is_an_option(chat_folder, running, tmp_path):
    backbone, tokenizer = load_model(str(chat_folder))
    heads = LabDualHeadForCausalLM(LabDualHeadConfig(backbone.config, str(chat_folder), 4), backbone)
    heads.rm_head.weight.data.normal_(std=0.2)
    heads.save_pretrained(tmp_path / "heads")
    tokenizer.save_pretrained(tmp_path / "heads")
    with serving(tmp_path / "heads") as server:
        said = {
            alignment: chat(server, extra_body={"alignment": alignment}).choices[0].message.content
            for alignment in (0, 1, 2)
        }
        assert said[0] == alone(running, ASKED) and len({*said.values()}) > 1
        assert said[2] == alone(server, ASKED, SETTINGS.model_copy(update={"alignment": 2.0}))
