"""A stand-in for `vllm serve` as TRL's client speaks with it, that truly generates.

It answers the addresses that `trl.generation.vllm_client.VLLMClient` uses, with a model of transformers that
it reads from a folder as vLLM would, and draws by the seed of each request. Weights arrive over HTTP, since
NCCL needs GPUs: `HTTPClient` replaces the two methods of TRL's client that open the group and send over it.
"""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch
from safetensors.torch import load, save
from transformers import AutoModelForCausalLM
from trl.generation import vllm_client, vllm_generation


class HTTPClient(vllm_client.VLLMClient):
    """TRL's client, whose weights go by HTTP."""

    def init_communicator(self, device=0):
        assert self.get_server_info()["weight_transfer_config"]["backend"] == "nccl"
        assert self.get_world_size() == 1
        self._post(f"{self.base_url}/init_weight_transfer_engine", json={"init_info": {"world_size": 2}})

    def update_named_params(self, metadata, named_params):
        sent = [(name, weight.detach().cpu().clone()) for name, weight in named_params]
        told = [(name, str(weight.dtype).removeprefix("torch."), list(weight.shape)) for name, weight in sent]
        assert told == list(metadata), "what is announced is what comes, in that order"
        self._start_weight_update()
        self._post(f"{self.base_url}/update_weights", data=save(dict(sent)))
        self._finish_weight_update()


class Server(ThreadingHTTPServer):
    """A server of one model.

    Attributes:
        model: that it answers with.
        requests: bodies of the requests for answers.
        updates: how often it got weights.
    """

    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), Handler)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.requests, self.updates, self.lock = [], 0, threading.Lock()

    @torch.no_grad()
    def answer(self, body):
        """Returns the choice of a request with one prompt, drawn token by token."""
        with self.lock:
            self.requests.append(body)
            generator = torch.Generator().manual_seed(body["seed"])
            ids, drawn = list(body["prompt"][0]), []
            start = len(ids)
            while len(ids) - start < body["max_tokens"] and ids[-1] not in body["stop_token_ids"]:
                log_probs = (
                    self.model(torch.tensor([ids])).logits[0, -1].div(body["temperature"]).log_softmax(-1)
                )
                ids.append(int(torch.multinomial(log_probs.exp(), 1, generator=generator)))
                drawn.append(log_probs[ids[-1]].item())
            tokens = [f"token_id:{token}" for token in ids[start:]]
        tops = [{token: value} for token, value in zip(tokens, drawn, strict=True)]
        logprobs = {"tokens": tokens, "token_logprobs": drawn, "top_logprobs": tops}
        return {"prompt_token_ids": ids[:start], "token_ids": ids[start:], "logprobs": logprobs}

    def update(self, weights):
        """Takes weights; a name that the model does not have is an error, as in vLLM."""
        with self.lock:
            unknown = self.model.load_state_dict(weights, strict=False).unexpected_keys
            assert not unknown, unknown
            self.updates += 1


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *args):
        pass

    def reply(self, answer):
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        info = {
            "weight_transfer_config": {"backend": "nccl"},
            "model_config": {"logprobs_mode": "processed_logprobs"},
        }
        answers = {
            "/health": {},
            "/v1/models": {"data": [{"id": "policy"}]},
            "/server_info": {"vllm_config": info},
            "/get_world_size": {"world_size": 1},
        }
        self.reply(answers[self.path.partition("?")[0]])

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path == "/update_weights":
            self.server.update(load(body))
        if self.path == "/v1/completions":
            self.reply({"choices": [self.server.answer(json.loads(body))]})
        else:
            self.reply({"success": True})


@contextmanager
def served(folder, monkeypatch):
    """Serves the model of a folder, and lets the lab believe that vLLM is there."""
    for module in (vllm_client, vllm_generation):
        monkeypatch.setattr(module, "is_vllm_available", lambda min_version=None: True)
    monkeypatch.setattr(vllm_generation, "VLLMClient", HTTPClient)
    monkeypatch.setattr("llmlab.training.vllm.installed", lambda: True)
    monkeypatch.setattr("llmlab.training.vllm.SENDS", ("cuda", "cpu"))
    with Server(folder) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()
