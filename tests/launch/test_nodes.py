"""Two machines give the losses of one machine with two ranks, however they are started."""

import subprocess

import pytest

pytestmark = pytest.mark.slow


def same(bench, one, two) -> None:
    expected, found = bench.losses(one), bench.losses(two)
    assert len(found) == len(expected) == 20
    assert found == pytest.approx(expected, abs=1e-5)
    print(f"largest difference {max(abs(a - b) for a, b in zip(expected, found, strict=True)):.1e}")


def host_file(hosts, folder) -> str:
    path = folder / "hosts"
    path.write_text("".join(f"{address} slots=1\n" for address in hosts.addresses))
    return str(path)


def test_host_file_and_ssh(hosts, bench, one_host, tmp_path):
    """`deepspeed --hostfile`, pdsh and ssh; the environment is what launch/pretrain.sh wrote."""
    script = str(bench.root / "launch/pretrain.sh")
    command = ["bash", script, "--hostfile", host_file(hosts, tmp_path)]
    command += bench.arguments(tmp_path / "run")
    # Started elsewhere than in the repository: nothing depends on the current directory.
    output = bench.run(hosts.wrap(command), env=bench.environment("eth0"), cwd=tmp_path)
    assert all(f"{address}: " in output for address in hosts.addresses)
    assert "GLOO_SOCKET_IFNAME=eth0" in (tmp_path / ".deepspeed_env").read_text()
    same(bench, one_host, tmp_path / "run")


def test_started_on_each_machine_without_ssh(hosts, bench, one_host, tmp_path):
    file, first = host_file(hosts, tmp_path), hosts.addresses[0]
    launcher = ["deepspeed", "--hostfile", file, "--no_ssh", "--master_addr", first, "--node_rank"]
    everywhere(
        hosts,
        bench,
        lambda n: [*launcher, n, "launch/pretrain.sh"],
        bench.arguments(tmp_path / "run"),
    )
    same(bench, one_host, tmp_path / "run")


def test_torchrun_on_each_machine(hosts, bench, one_host, tmp_path):
    launcher = ["torchrun", "--nnodes", "2", "--nproc-per-node", "1"]
    launcher += ["--master-addr", hosts.addresses[0], "--master-port", "29510", "--node-rank"]
    everywhere(
        hosts, bench, lambda n: [*launcher, n, "-m", "pretrain"], bench.arguments(tmp_path / "run")
    )
    same(bench, one_host, tmp_path / "run")


def everywhere(hosts, bench, launcher, arguments) -> None:
    """The same command on both machines, told which it is."""
    env = bench.environment("eth0")
    options = {"cwd": bench.root, "env": env, "text": True}
    options |= {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    started = [hosts.popen([*launcher(str(n)), *arguments], n, **options) for n in range(2)]
    for process in started:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output[-4000:]
