"""A push to a real HTTP server: what arrives, what stays, what is said when it fails, and what goes on."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch
from huggingface_hub import snapshot_download
from transformers import AutoModelForCausalLM

from llmlab.cli import command_line
from llmlab.errors import LabError
from llmlab.export import hub as push_module
from llmlab.export.facts import BUNDLED
from tests.export.conftest import WRITER
from tests.export.hub_server import local_hub, sha256
from tests.waiting import PATIENCE

pytestmark = [
    pytest.mark.slow,  # servers, uploads
    # of httpx2, about how huggingface_hub calls it
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),
]


def logits(folder):
    torch.manual_seed(1)
    ids = torch.randint(0, 512, (2, 16))
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder)(ids).logits


def weights(folder):
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def test_what_arrives_is_the_model_and_its_card(hub, native, native_folder, tmp_path, capsys):
    (native / "optimizer.pt").write_bytes(b"x")
    (native / "run.json").write_text("{}")
    (native / "base.json").write_text("{}")
    assert command_line(["push", str(native), "alice/tiny"]) == 0
    output = capsys.readouterr()
    assert output.out.strip() == f"{hub.url}/alice/tiny"
    assert "not uploaded: base.json, optimizer.pt, run.json" in output.err
    files = hub.files("alice/tiny")
    model_files = {file.name for file in native_folder.iterdir()}
    assert set(files) == model_files | {"README.md", ".gitattributes"}
    assert hub.received == weights(native) and len(list(native.glob("*.safetensors"))) > 1
    assert not any(str(tmp_path).encode() in content for content in files.values())
    assert not hub.repositories["alice/tiny"]["private"]
    there = snapshot_download("alice/tiny", endpoint=hub.url, local_dir=tmp_path / "there")
    assert torch.equal(logits(there), logits(native_folder))


def test_a_private_one_and_a_branch(hub, native):
    command_line(["push", str(native), "alice/tiny", "--private", "--revision", "v1"])
    assert hub.repositories["alice/tiny"]["private"]
    assert "config.json" in hub.files("alice/tiny", "v1") and "config.json" not in hub.files("alice/tiny")
    command_line(["push", str(native), "alice/open"])
    with pytest.raises(LabError, match="is there already and is public"):
        command_line(["push", str(native), "alice/open", "--private"])


def test_pushing_the_same_again_sends_nothing(hub, native):
    command_line(["push", str(native), "alice/tiny"])
    received, commits = hub.received, hub.count("POST", ".*/commit/.*")
    command_line(["push", str(native), "alice/tiny"])
    assert (hub.received, hub.count("POST", ".*/commit/.*")) == (received, commits)


def test_a_resumed_push_sends_only_what_is_missing(hub, native):
    """The connection drops within every upload of one file, and all tries of it; the others stay there."""
    shard = sorted(native.glob("*.safetensors"))[-1]
    digest = sha256(shard.read_bytes())
    hub.faults[rf"PUT /lfs/{digest}/2"] = "drop"
    with pytest.raises(LabError, match="the same command again") as caught:
        command_line(["push", str(native), "alice/tiny"])
    assert caught.value.exit_code == 1
    assert "config.json" not in hub.files("alice/tiny")  # nobody downloads half a push
    hub.faults.clear()
    before = hub.received
    command_line(["push", str(native), "alice/tiny"])
    assert hub.received - before == shard.stat().st_size < weights(native)
    assert "model.safetensors.index.json" in hub.files("alice/tiny")


def test_a_push_whose_commit_failed_sends_no_weights_again(hub, native):
    hub.faults["POST .*/commit/.*"] = 503
    with pytest.raises(LabError, match=r"the hub failed \(status 503\)"):
        command_line(["push", str(native), "alice/tiny"])
    hub.faults.clear()
    before = hub.received
    command_line(["push", str(native), "alice/tiny"])
    assert hub.received == before > 0
    assert "model.safetensors.index.json" in hub.files("alice/tiny")


@pytest.mark.parametrize(
    "place, fault, message, code",
    [
        ("GET /api/whoami-v2", 401, "the hub does not accept the token: set HF_TOKEN", 2),
        ("POST /api/repos/create", 401, "the hub does not accept the token", 2),
        ("POST /api/repos/create", 403, "the token may not write to alice/tiny", 2),
        ("POST /api/repos/create", 500, r"the hub failed \(status 500\): run the same command again", 1),
        ("POST .*/preupload/.*", 403, "the token may not write to alice/tiny", 2),
        ("POST .*/preupload/.*", 404, "the hub has no alice/tiny", 2),
        ("POST .*/preupload/.*", 500, r"the hub failed \(status 500\)", 1),
        ("POST .*/batch", 502, r"the hub failed \(status 502\)", 1),
        ("PUT /lfs/.*", 403, "the token may not write", 2),
        ("PUT /lfs/.*", 500, r"the hub failed \(status 500\)", 1),
        ("PUT /lfs/.*", "drop", "the upload broke off|cannot be reached", 1),
        ("POST .*/commit/.*", 409, "was changed on the hub at the same time", 1),
        ("POST .*/commit/.*", 429, "takes no more requests", 1),
        ("POST .*/commit/.*", "drop", "the upload broke off", 1),
        ("GET /api/whoami-v2", 0.4, "the hub did not answer in time", 1),
    ],
)
def test_a_hub_that_fails(hub, native, monkeypatch, capsys, place, fault, message, code):
    monkeypatch.setattr(push_module, "ANSWER", 0.1 if isinstance(fault, float) else 60.0)
    hub.faults[place] = fault
    with pytest.raises(LabError, match=message) as caught:
        command_line(["push", str(native), "alice/tiny"])
    assert caught.value.exit_code == code and len(str(caught.value).splitlines()) == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) <= 2 and WRITER not in "\n".join([*errors, str(caught.value)])


def test_a_repository_of_somebody_else(hub, native):
    with pytest.raises(LabError, match="the token may not write to bob/tiny"):
        command_line(["push", str(native), "bob/tiny"])


def test_a_hub_that_is_not_there(hub, native, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(LabError, match="the hub cannot be reached") as caught:
        command_line(["push", str(native), "alice/tiny"])
    assert caught.value.exit_code == 1


def test_metadata_that_the_hub_refuses(hub, native):
    with pytest.raises(LabError, match="must be one of the known licences"):
        command_line(["push", str(native), "alice/tiny", "--license", "no-licence"])
    assert hub.received == 0


def test_offline_nothing_is_asked(hub, native, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(LabError, match="HF_HUB_OFFLINE"):
        command_line(["push", str(native), "alice/tiny"])
    assert not hub.requests


def test_tokens_of_the_environment_and_of_a_file(hub, native, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(LabError, match="needs a token"):
        command_line(["push", str(native), "alice/tiny"])
    (tmp_path / ".env").write_text("# mine\nOTHER=1\nexport HF_TOKEN='hf_reader_of_the_test_account' # old\n")
    with pytest.raises(LabError, match="can only read"):
        command_line(["push", str(native), "alice/tiny"])
    (tmp_path / ".env").write_text(f"HF_TOKEN={WRITER}  # new\n")
    assert command_line(["push", str(native), "alice/tiny"]) == 0
    assert "HF_TOKEN" not in os.environ
    (tmp_path / ".env").write_text("HF_TOKEN=hf_wrong_but_secret\n")
    with pytest.raises(LabError, match="does not accept the token") as caught:
        command_line(["push", str(native), "alice/tiny"])
    assert "hf_wrong" not in str(caught.value)
    written = [file for file in tmp_path.rglob("*") if file.is_file() and file.name != ".env"]
    assert not any(WRITER.encode() in file.read_bytes() for file in written)
    assert not any(WRITER.encode() in content for content in hub.files("alice/tiny").values())


def test_a_model_that_only_this_program_loads(hub, base_run, capsys):
    with pytest.raises(LabError, match=r"only llmlab loads.*llmlab export .* --to hf"):
        command_line(["push", str(base_run.folder), "alice/lab"])
    assert not hub.requests
    assert command_line(["push", str(base_run.folder), "alice/lab", "--as-is"]) == 0
    assert "MANIFEST.json" not in hub.files("alice/lab")
    assert b"llmlab chat alice/lab" in hub.files("alice/lab")["README.md"]


def test_an_exported_folder_goes_with_its_code_and_its_lineage(hub, native, base_run, tmp_path):
    """As `llmlab export` leaves it: a record, modelling code, the backbone of a dual head in a folder."""
    from llmlab.models.dual_head.modeling import BUNDLED as exported

    assert exported == BUNDLED
    config = json.loads((native / "config.json").read_text())
    config |= {"backbone": BUNDLED, "auto_map": {"AutoModelForCausalLM": "modeling_x.X"}}
    shutil.copytree(native, tmp_path / "copy")
    shutil.move(tmp_path / "copy", native / BUNDLED)
    for folder in (native, native / BUNDLED):
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "modeling_x.py").write_text("")
        (folder / "trainer_state.json").write_text("{}")
    (native / "export.json").write_text(json.dumps({"exported": str(base_run.folder)}))
    command_line(["push", str(native), "alice/exported"])
    files = hub.files("alice/exported")
    assert {"modeling_x.py", "backbone/modeling_x.py", "backbone/config.json"} <= set(files)
    assert not {"export.json", "trainer_state.json", "backbone/trainer_state.json"} & set(files)
    card = files["README.md"].decode()
    assert "trust_remote_code=True" in card and "llmlab:moby-dick" in card and str(tmp_path) not in card


def make_adapter(folder, base):
    from peft import LoraConfig, get_peft_model

    model = AutoModelForCausalLM.from_pretrained(base)
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(folder)
    return folder


def test_an_adapter_goes_with_the_id_of_its_base(hub, native, tmp_path):
    folder = make_adapter(tmp_path / "lora", native)
    with pytest.raises(LabError, match=r"has no hub id: make a whole model first .`llmlab merge"):
        command_line(["push", str(folder), "alice/lora"])
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "alice/tiny"
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "README.md").unlink()
    command_line(["push", str(folder), "alice/lora"])
    files = hub.files("alice/lora")
    assert {"adapter_config.json", "adapter_model.safetensors"} <= set(files)
    assert b"base_model: alice/tiny" in files["README.md"]
    assert b"library_name: peft" in files["README.md"] and b"AutoPeftModelForCausalLM" in files["README.md"]


def test_readmes(hub, native, capsys):
    """A person's page stays: beside the model it is pushed, on the hub it is kept; a card is made anew."""
    command_line(["push", str(native), "alice/tiny"])
    first = hub.files("alice/tiny")["README.md"]
    command_line(["push", str(native), "alice/tiny", "--license", "mit"])
    second = hub.files("alice/tiny")["README.md"]
    assert b"license: mit" in second and b"license: mit" not in first
    edited = second.replace(b"## How to use it", b"I wrote this. ## How to use it")
    hub.files("alice/tiny")["README.md"] = edited
    capsys.readouterr()
    command_line(["push", str(native), "alice/tiny"])
    assert hub.files("alice/tiny")["README.md"] == edited
    assert "--replace-card" in capsys.readouterr().err
    command_line(["push", str(native), "alice/tiny", "--replace-card"])
    assert hub.files("alice/tiny")["README.md"] == first
    (native / "README.md").write_text("# Mine\n")
    command_line(["push", str(native), "alice/tiny"])
    assert hub.files("alice/tiny")["README.md"] == b"# Mine\n"


def test_weights_of_an_earlier_push_are_removed(hub, native, tmp_path, capsys):
    command_line(["push", str(native), "alice/tiny"])
    whole = tmp_path / "whole"
    AutoModelForCausalLM.from_pretrained(native).save_pretrained(whole)
    capsys.readouterr()
    command_line(["push", str(whole), "alice/tiny"])
    assert [name for name in hub.files("alice/tiny") if "safetensors" in name] == ["model.safetensors"]
    errors = capsys.readouterr().err
    assert "removes model-00001-of" in errors and "there is no tokenizer" in errors


def test_what_cannot_be_pushed(hub, native, base_run, tmp_path):
    for name, message in (
        ("tiny", "write OWNER/NAME"),
        ("a/b/c", "write OWNER/NAME"),
        ("../x", "OWNER/NAME"),
    ):
        with pytest.raises(LabError, match=message):
            command_line(["push", str(native), name])
    copy = shutil.copytree(base_run.model, tmp_path / "copy")
    (copy / "config.json").write_text("{}")
    with pytest.raises(LabError, match=r"is damaged: config\.json"):
        command_line(["push", str(copy), "alice/tiny"])
    sorted(native.glob("*.safetensors"))[0].unlink()
    with pytest.raises(LabError, match="lacks model-00001"):
        command_line(["push", str(native), "alice/tiny"])
    with pytest.raises(LabError, match="is not on this machine"):
        command_line(["push", "somebody/model", "alice/tiny"])
    assert not hub.requests


def test_a_dry_run_lists_the_files_and_asks_nothing(hub, native, capsys, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    command_line(["push", str(native), "alice/tiny", "--dry-run"])
    lines = capsys.readouterr().out.splitlines()
    assert sorted(line.split()[0] for line in lines) == sorted(file.name for file in native.iterdir())
    assert not hub.requests


def test_the_program_and_transformers_load_what_was_pushed(base_run, native_folder, tmp_path, capsys):
    """As a person does: processes with HF_ENDPOINT set; the same logits come back from the hub."""
    with local_hub(part_size=40_000) as hub:
        environment = {
            **{name: value for name, value in os.environ.items() if not re.match("HF_|TRANSFORMERS_", name)},
            "HF_ENDPOINT": hub.url,
            "HF_TOKEN": WRITER,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HOME": str(tmp_path / "home"),
        }

        def python(*arguments):
            return subprocess.run(
                [sys.executable, *map(str, arguments)],
                capture_output=True,
                text=True,
                env=environment,
                timeout=PATIENCE,
            )

        assert python("-m", "llmlab", "push", native_folder, "alice/tiny").returncode == 0
        wrong = python("-m", "llmlab", "push", native_folder, "bob/tiny")
        assert wrong.returncode == 2 and len(wrong.stderr.splitlines()) == 2, wrong.stderr
        assert python("-m", "llmlab", "push", base_run.folder, "alice/lab", "--as-is").returncode == 0
        program = (
            "import torch, sys; from transformers import AutoModelForCausalLM\n"
            "torch.manual_seed(1); ids = torch.randint(0, 512, (2, 16))\n"
            "model = AutoModelForCausalLM.from_pretrained('alice/tiny')\n"
            "torch.save(model(ids).logits.detach(), sys.argv[1])"
        )
        result = python("-c", program, tmp_path / "logits.pt")
        assert result.returncode == 0, result.stderr
        assert torch.equal(torch.load(tmp_path / "logits.pt"), logits(native_folder))
        arguments = ("--prompt", "Call me", "--set", "temperature=0", "--set", "max_new_tokens=8")
        there = python("-m", "llmlab", "generate", "alice/lab", *arguments)
        command_line(["generate", str(base_run.folder), *arguments])
        assert there.returncode == 0 and there.stdout == capsys.readouterr().out, there.stderr


def test_a_base_model_without_a_chat_template_has_prompts_for_the_self_test_of_an_export(base_run):
    from llmlab.config.export import ExportOptions
    from llmlab.export.selftest import expected
    from llmlab.export.source import load_source

    prompts = expected(load_source(str(base_run.folder), ExportOptions()))
    assert prompts and not any(prompt.messages for prompt in prompts)
