"""Host files and the environment that goes along, against what DeepSpeed itself reads."""

import subprocess
from pathlib import Path

import pytest

from pretrain.cluster.nodes import (
    Host,
    deepspeed_env,
    forwarded,
    on_host,
    read_hostfile,
    write_deepspeed_env,
)
from shards.files import InputError

ROOT = Path(__file__).resolve().parents[2]


def test_host_file_as_deepspeed_reads_it():
    from deepspeed.launcher.runner import fetch_hostfile

    path = ROOT / "launch/hostfile.example"
    ours = {host.name: host.slots for host in read_hostfile(path)}
    assert ours == dict(fetch_hostfile(str(path))) == {"node1": 8, "node2": 8}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no host in it"),
        ("# node1 slots=8\n", "no host in it"),
        ("node1 slots=8\nnode2\n", "line 2: 'node2' is no"),
        ("node1 slots=0\n", "line 1"),
        ("node1 slots=2\n\nnode1 slots=2\n", "line 3: node1 stands there twice"),
        ("-oProxyCommand=x slots=1\n", "line 1"),
    ],
)
def test_bad_host_files_end_in_one_line(content, message, tmp_path):
    (tmp_path / "hosts").write_text(content)
    with pytest.raises(InputError, match=message):
        read_hostfile(tmp_path / "hosts")


def test_missing_host_file(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_hostfile(tmp_path / "hosts")


def test_environment_that_goes_along():
    here = {
        "HF_HOME": "/data/hf", "OMP_NUM_THREADS": "4", "NCCL_SOCKET_IFNAME": "ib0", "DS_SKIP": "1",
        "HF_TOKEN": "hf_secret", "WANDB_API_KEY": "secret", "CUDA_VISIBLE_DEVICES": "0",
        "PATH": "/bin", "HOME": "/root", "TORCH_LOGS": "", "https_proxy": "http://p:1",
    }  # fmt: skip
    assert forwarded(here) == {
        "DEEPSPEED_TIMEOUT": "30", "DS_SKIP": "1", "HF_HOME": "/data/hf",
        "NCCL_SOCKET_IFNAME": "ib0", "OMP_NUM_THREADS": "4", "https_proxy": "http://p:1",
    }  # fmt: skip
    assert forwarded({"DEEPSPEED_TIMEOUT": "90"}) == {"DEEPSPEED_TIMEOUT": "90"}


def test_secrets_stay_here_and_the_file_is_its_owners(tmp_path, capsys):
    secrets = {
        "https_proxy": "http://me:pa55@proxy:3128", "HF_HUB_TOKEN": "x", "TORCH_SECRET_KEY_ID": "x",
        "WANDB_IDENTITY_TOKEN_FILE": "/t", "WANDB_BASE_URL": "u://a:b@h",
        "NCCL_AUTH": "x", "FUSION_MRE_PASSWORD": "x", "DS_API_KEY": "x",
    }  # fmt: skip
    plain = {"TOKENIZERS_PARALLELISM": "false", "WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1"}
    assert forwarded(secrets | plain) == {"DEEPSPEED_TIMEOUT": "30"} | plain
    told = capsys.readouterr().err
    assert "https_proxy" in told and "pa55" not in told
    (tmp_path / ".deepspeed_env").write_text("of an earlier version")
    path = write_deepspeed_env(tmp_path, secrets | plain)
    assert path.stat().st_mode & 0o777 == 0o600 and "pa55" not in path.read_text()


def test_no_line_that_deepspeed_fails_on():
    content = deepspeed_env({"HF_HOME": "/data/h f", "NCCL_DEBUG": "INFO"})
    assert content.splitlines() == ["DEEPSPEED_TIMEOUT=30", "HF_HOME=/data/h f", "NCCL_DEBUG=INFO"]
    for value in ("a\nb", 'say "x"', "$HOME", "`id`", "50%n"):
        with pytest.raises(InputError, match="HF_HOME"):
            deepspeed_env({"HF_HOME": value})


def test_commands_arrive_unchanged(tmp_path):
    """What a remote shell makes of the last argument, here a local one."""
    nasty = ["printf", "%s|", "a b", "$HOME", "it's", '"', "*"]
    command = on_host(Host(name="node1", slots=1), nasty, folder=tmp_path)
    assert command[0] == "ssh" and command[-2] == "node1" and "BatchMode=yes" in command
    result = subprocess.run(["sh", "-c", command[-1]], capture_output=True, text=True, check=True)
    assert result.stdout == "a b|$HOME|it's|\"|*|"
    assert on_host(Host(name="localhost", slots=1), nasty) == nasty


def test_a_user_before_the_name(tmp_path):
    """DeepSpeed hands the name to ssh and pdsh as it stands; so do we, but for sockets."""
    from deepspeed.launcher.runner import fetch_hostfile

    path = tmp_path / "hosts"
    path.write_text("ann@node1 slots=8\nbob.b@10.0.0.2 slots=4\n")
    ours = read_hostfile(path)
    assert {host.name: host.slots for host in ours} == dict(fetch_hostfile(str(path)))
    assert [host.address for host in ours] == ["node1", "10.0.0.2"]
    assert "ann@node1" in on_host(ours[0], ["true"], folder=tmp_path)
    path.write_text("-oProxyCommand=x@node1 slots=8\n")
    with pytest.raises(InputError, match="line 1"):
        read_hostfile(path)
